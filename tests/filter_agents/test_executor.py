"""Running a selection: intersection, what could not be carried out, and results that are remembered."""

import pytest

from data.reports.pool import load_pool
from filter_agents.base import FilterAgent, Instruction
from filter_agents.executor import Executor, Outcome
from filter_agents.registry import build_agents


class Counting(FilterAgent):
    """Keeps the ids that its prompt names; counts how often it works."""

    name = "counting"
    description = "counts"

    def __init__(self):
        self.calls = []

    def read_prompt(self, prompt: str) -> Instruction:
        return Instruction(tuple(sorted(prompt.split())), bool(prompt))

    def keep(self, pool_folder: str, parameters: tuple) -> list:
        self.calls.append((pool_folder, parameters))
        return [item_id for item_id in load_pool(pool_folder).ids if item_id in parameters]


@pytest.fixture
def counting():
    return Counting()


def test_several_agents_keep_what_each_of_them_keeps(flawed_pool, all_but):
    prompts = {
        "answer_consistency_filter": "",
        "blur_filter": "keep blur at most 0.8",
        "exact_duplicate_filter": "copies",
    }
    outcome = Executor(build_agents()).run(str(flawed_pool), prompts)
    assert outcome == Outcome(all_but("disputed", "blurred", "copy"), unread_prompts=1, unknown_agents=0)


def test_all_agents_leave_the_one_item_without_flaws(flawed_pool):
    outcome = Executor(build_agents()).run(str(flawed_pool), dict.fromkeys(build_agents(), ""))
    assert outcome == Outcome(["plain"], unread_prompts=8)


def test_the_order_of_agents_does_not_matter(flawed_pool):
    prompts = {"blur_filter": "", "exposure_filter": "keep brightness at least 0.52", "text_length_filter": ""}
    executor = Executor(build_agents())
    backwards = dict(reversed(prompts.items()))
    assert executor.run(str(flawed_pool), prompts) == executor.run(str(flawed_pool), backwards)


def test_an_empty_selection_keeps_everything(flawed_pool, all_but):
    assert Executor(build_agents()).run(str(flawed_pool), {}) == Outcome(all_but())


def test_unknown_agents_are_counted_and_do_nothing_beside_known_ones(flawed_pool, all_but):
    outcome = Executor(build_agents()).run(str(flawed_pool), {"zoom": "", "blur_filter": "", "Blur_Filter": ""})
    assert outcome == Outcome(all_but("blurred"), unread_prompts=1, unknown_agents=2)


def test_a_selection_of_unknown_agents_alone_keeps_nothing(flawed_pool):
    assert Executor(build_agents()).run(str(flawed_pool), {"zoom": "x", "": ""}) == Outcome([], unknown_agents=2)


def test_a_result_is_remembered_by_pool_agent_and_parameters(flawed_pool, make_pool_of, counting):
    executor = Executor({"counting": counting})
    other = str(make_pool_of(["plain", "dark"]))
    for pool, prompt in [(flawed_pool, "dark plain"), (flawed_pool, "plain  dark"), (other, "dark plain")] * 3:
        assert executor.run(str(pool), {"counting": prompt}).kept == ["plain", "dark"]
    assert counting.calls == [(str(flawed_pool), ("dark", "plain")), (other, ("dark", "plain"))]
    assert executor.run(str(flawed_pool), {"counting": "dark"}).kept == ["dark"]
    assert len(counting.calls) == 3


def test_results_of_two_agents_with_equal_parameters_are_not_mixed(flawed_pool, counting):
    class Opposite(Counting):
        def keep(self, pool_folder, parameters):
            return [item_id for item_id in load_pool(pool_folder).ids if item_id not in parameters]

    executor = Executor({"counting": counting, "opposite": Opposite()})
    assert executor.run(str(flawed_pool), {"counting": "dark"}).kept == ["dark"]
    assert "dark" not in executor.run(str(flawed_pool), {"opposite": "dark"}).kept
    assert executor.run(str(flawed_pool), {"counting": "dark", "opposite": "dark"}).kept == []


def test_the_oldest_results_are_forgotten_first(flawed_pool, counting):
    executor = Executor({"counting": counting}, cache_size=2)
    for prompt in ["dark", "white", "tiny", "white", "tiny", "dark"]:
        executor.run(str(flawed_pool), {"counting": prompt})
    assert [parameters for _, parameters in counting.calls] == [("dark",), ("white",), ("tiny",), ("dark",)]


def test_unread_prompts_are_counted_also_when_the_result_is_remembered(flawed_pool, counting):
    executor = Executor({"counting": counting})
    outcomes = [executor.run(str(flawed_pool), {"counting": ""}) for _ in range(2)]
    assert outcomes == [Outcome([], unread_prompts=1)] * 2
    assert len(counting.calls) == 1
