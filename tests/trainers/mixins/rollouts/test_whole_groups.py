"""Rewards of whole groups, where the completions of a group lie on one process or on several."""

import asyncio
import math
import threading

import pytest
import torch
from grpo_runs import G, make_trainer, questions

from rewards.scoring.guards import guard
from trainers.mixins.rollouts import whole_groups
from trainers.mixins.rollouts.whole_groups import WholeGroups


def of_groups(score, is_async: bool):
    """The function as a reward of whole groups."""

    async def awaited(completions, **columns):
        return score(completions, **columns)

    def called(completions, **columns):
        return score(completions, **columns)

    chosen = awaited if is_async else called
    chosen.scores_groups = True
    return guard(chosen, "own", on_error="skip", max_error_rate=1.0)


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


class Processes:
    """`gather_object` of threads that stand for processes."""

    def __init__(self, count: int):
        self.barrier, self.parts, self.local = threading.Barrier(count), [None] * count, threading.local()

    def gather(self, objects: list) -> list:
        self.parts[self.local.number] = objects
        self.barrier.wait(10)
        found = [one for part in self.parts for one in part]
        self.barrier.wait(10)
        return found

    def run(self, work) -> list:
        results = [None] * len(self.parts)

        def start(number: int) -> None:
            self.local.number = number
            results[number] = work(number)

        threads = [threading.Thread(target=start, args=(number,)) for number in range(len(self.parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@both
@pytest.mark.parametrize(
    ("processes", "rows", "size"),
    [(1, 6, 3), (2, 4, 2), (2, 3, 6), (2, 3, 2), (3, 2, 6), (3, 4, 6), (4, 3, 4)],
)
def test_every_group_is_scored_once_and_whole_on_whatever_processes_it_lies(
    processes, rows, size, is_async, monkeypatch
):
    total = processes * rows
    texts = [f"{(7 * row) % total:03}" for row in range(total)]
    them = Processes(processes)
    monkeypatch.setattr(whole_groups, "gather_object", them.gather)
    calls: list = []

    def rank(completions, number, **columns):
        calls.append(completions)
        assert set(number) == {number[0]}
        return [100 * number[0] + sum(other < text for other in completions) for text in completions]

    def work(process: int) -> torch.Tensor:
        own = range(process * rows, (process + 1) * rows)
        local = [{"number": row // size, "completions": texts[row]} for row in own]
        groups = WholeGroups(local, size, process)
        given = groups.scored_by(of_groups(rank, is_async), 1)(trainer_state=None)
        given = asyncio.run(given) if is_async else given
        assert given == [None] * rows
        rewards = torch.tensor([[0.5, math.nan]] * total)  # as the parent gathers them
        groups.fill(rewards)
        return rewards

    whole = [texts[first : first + size] for first in range(0, total, size)]
    expected = [
        [0.5, 100 * number + sum(other < text for other in group)]
        for number, group in enumerate(whole)
        for text in group
    ]
    assert [found.tolist() for found in them.run(work)] == [expected] * processes
    assert sorted(calls) == sorted(whole)


@both
def test_grpo_hands_whole_groups_to_a_reward_and_learns_from_its_scores(tiny_model, tmp_path, is_async):
    seen: list = []

    def places(completions, prompts, completion_ids, trainer_state, number, **columns):
        seen.append((len(completions), len(prompts), len(completion_ids), len(set(number)), trainer_state.global_step))
        if number[0] % 2:
            raise KeyError("odd")
        return [float(place) for place in range(len(completions))]

    def zero(completions, **columns):
        return [0.0] * len(completions)

    settings = {"max_steps": 1, "per_device_train_batch_size": 2 * G}
    trainer = make_trainer(str(tiny_model), tmp_path, [zero, of_groups(places, is_async)], questions(2), **settings)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert seen == [(G, G, G, 1, 0)] * 2
    assert logged["rewards/own/mean"] == (G - 1) / 2
    assert logged["rewards/own/errors"] == G
    assert logged["frac_reward_zero_std"] == 0.5  # of the group that failed `zero` alone is left
