"""Cases of online GRPO: what counts in a loss, what is drawn anew, what rewards see, what cannot start."""

import pytest
import torch
from grpo_runs import as_reward, is_flat, make_trainer, picture, questions, train_and_check

from rewards.scoring.guards import guard

A, B = as_reward("a"), as_reward("b")


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# -- T4 to T6: groups drawn anew, rows that left the loss -------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "settings"),
    [
        (1, {"curriculum_top_k": 2, "curriculum_share": 1.0}),
        (1, {}),  # rows without any reward
        (3, {"curriculum_top_k": 1, "curriculum_share": 1.0, "loss_type": "grpo"}),
        (1, {"mask_truncated_completions": True, "loss_type": "dr_grpo"}),
    ],
)
def test_t04_redrawn_groups_and_rows_out_of_the_loss(often_ending_model, tmp_path, rounds, settings):
    trainer = make_trainer(often_ending_model, tmp_path, A, dynamic_sampling_rounds=rounds, **settings)
    found, _ = train_and_check(trainer, {"a": 1.0})
    assert max(logged(trainer, "dynamic_sampling/groups_drawn")) > 0
    assert any("row_scale" in part.inputs for part in found.parts)


@pytest.mark.parametrize("settings", [{}, {"advantage_clip": 0.3}, {"scale_rewards": "none"}, {"loss_type": "grpo"}])
def test_t05_redrawn_groups_have_their_own_advantages_of_normalised_rewards(often_ending_model, tmp_path, settings):
    trainer = make_trainer(often_ending_model, tmp_path, [A, B], dynamic_sampling_rounds=4,
                           multi_objective_aggregation="normalize_then_sum", **settings)  # fmt: skip
    found, compared = train_and_check(trainer, {"a": 1.0, "b": 1.0})
    assert max(logged(trainer, "dynamic_sampling/groups_drawn")) > 0
    advantages = found.rollouts[-1]["advantages"].view(-1, 4)
    moves = [not is_flat(group) for group in compared]
    assert any(moves)
    assert [bool(row.any()) for row in advantages] == moves


def cancelling(sign: float, flat: bool):
    """One of two rewards whose sum is equal for all rows (`flat`), or whose normalised sum is."""

    def reward(completions, completion_ids, **columns):
        values = [1000.0 * (ids[0] % 11) for ids in completion_ids]  # beside which TRL's epsilon is nothing
        return values if sign > 0 else [5 - value if flat else 5 - 3 * value for value in values]

    reward.__name__ = "up" if sign > 0 else "down"
    return reward


@pytest.mark.parametrize(
    ("flat_sum", "weights", "aggregation", "share"),
    [
        (False, [1.0, 1.0], "normalize_then_sum", 1.0),  # normalised, they cancel
        (False, [1.0, 1.0], "sum_then_normalize", 0.0),
        (True, [1.0, 1.0], "sum_then_normalize", 1.0),
        (False, [3.0, 1.0], "normalize_then_sum", 0.0),  # only the plain weighted sum is equal
        (False, [3.0, 1.0], "sum_then_normalize", 1.0),
    ],
)
def test_t05_contrast_is_that_of_the_aggregation(often_ending_model, tmp_path, flat_sum, weights, aggregation, share):
    rewards = (cancelling(1, flat_sum), cancelling(-1, flat_sum))  # any sequence will do
    trainer = make_trainer(often_ending_model, tmp_path, rewards, reward_weights=weights, max_steps=1,
                           multi_objective_aggregation=aggregation, dynamic_sampling_rounds=1)  # fmt: skip
    trainer.train()
    assert logged(trainer, "frac_reward_zero_std") == [share]
    assert logged(trainer, "dynamic_sampling/groups_drawn") == [4.0 * share]


LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_t06_entropy_bonus_is_coef_times_mean_entropy_whatever_left_the_loss(often_ending_model, tmp_path, loss_type):
    """The loss with a bonus is the one without, minus 0.1 times the mean entropy of the tokens that count."""
    found = {}
    for coef in (0.0, 0.1):
        trainer = make_trainer(often_ending_model, tmp_path, A, entropy_coef=coef, curriculum_top_k=1, max_steps=1,
                               curriculum_share=1.0, loss_type=loss_type, beta=0.1)  # fmt: skip
        found[coef] = train_and_check(trainer, {"a": 1.0})[0].parts[0]
    part = found[0.0]
    counted = (part.inputs["completion_mask"] * part.inputs["tool_mask"]).bool()
    bonus = 0.1 * part.entropies[counted].mean().item()
    assert found[0.0].loss - found[0.1].loss == pytest.approx(bonus, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.3, "num_iterations": 2},
        {"top_entropy_quantile": 0.3, "entropy_coef": 0.2},
        {"use_adaptive_entropy": True, "entropy_target": 100.0, "entropy_coef": 0.1, "entropy_coef_delta": 0.0},
        {"entropy_coef": 0.2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    ],
)
def test_t06_policy_and_kl_are_means_over_the_rows_that_count(often_ending_model, tmp_path, settings):
    trainer = make_trainer(often_ending_model, tmp_path, A, loss_type="grpo", curriculum_top_k=2,
                           curriculum_share=1.0, **settings)  # fmt: skip
    if trainer.args.use_adaptive_entropy:
        trainer._last_world_entropy = 0.0  # the bonus acts from the first step on
    train_and_check(trainer, {"a": 1.0})


def test_t06_kl_without_any_row_is_none_rather_than_zero(often_ending_model, tmp_path):
    """No reward applies in the second rollout: beta does not shrink for want of divergence."""
    calls = []

    def first_only(completions, **columns):
        calls.append(1)
        return [float(place) if len(calls) == 1 else None for place in range(len(completions))]

    trainer = make_trainer(often_ending_model, tmp_path, first_only, beta=0.5, adaptive_kl=True, kl_target_min=1.0,
                           kl_target_max=2.0)  # fmt: skip
    trainer.train()
    assert trainer.beta == pytest.approx(0.5 / 1.5)
    assert [entry["kl"] for entry in trainer.state.log_history if "kl" in entry] == [0.0, None]


@pytest.mark.parametrize("rounds", [0, 2])
def test_t05_completions_are_logged_with_their_own_rewards_and_advantages(often_ending_model, tmp_path, rounds):
    """The table of completions is of the prompts as they came; groups drawn later do not mix into it."""
    seen = []

    def noting(completions, completion_ids, number, **columns):
        scores = A(completions, completion_ids, number)
        seen.append((completions, scores))
        return scores

    trainer = make_trainer(often_ending_model, tmp_path, noting, max_steps=1, dynamic_sampling_rounds=rounds)
    trainer.train()
    completions, scores = seen[0]
    assert (len(seen) > 1) is (rounds > 0)
    assert list(trainer._logs["completion"]) == completions
    assert list(trainer._logs["rewards"]["noting"]) == pytest.approx(
        [float("nan") if score is None else score for score in scores], nan_ok=True
    )


# -- T14: each reward its own copy ------------------------------------------------------------------------------------


def meddling(completions, prompts, completion_ids, notes, images, **columns):
    """Changes whatever it is given, in place."""
    for place in range(len(completions)):
        completions[place][0]["content"] = "changed"
        prompts[place].clear()
        completion_ids[place].append(-1)
        notes[place]["deep"][0].append("changed")
        images[place][0].paste((0, 0, 0), (0, 0, 56, 56))
        images[place].clear()
    columns["number"].clear()
    return [0.0] * len(completions)


def test_t14_a_reward_sees_nothing_of_what_another_changed(often_ending_model, tmp_path):
    seen = []

    def seeing(completions, prompts, completion_ids, notes, images, number, **columns):
        seen.append([prompt[0]["role"] for prompt in prompts])
        assert "changed" not in [completion[0]["content"] for completion in completions]
        assert all(-1 not in ids for ids in completion_ids)
        assert notes == [{"deep": [["kept"]]}] * 8
        assert all(row[0].getpixel((3, 3)) == (20 * n % 256, 90, 200) for row, n in zip(images, number, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    rows = questions(4, notes=lambda number: {"deep": [["kept"]]}, images=picture)
    trainer = make_trainer(often_ending_model, tmp_path, [meddling, seeing, meddling, seeing], rows, max_steps=1,
                           per_device_train_batch_size=8)  # fmt: skip
    trainer.train()
    assert seen == [["user"] * 8] * 2


def test_t14_a_reward_that_is_called_again_row_by_row_sees_the_rows_as_they_were():
    def spoiling(completions, words, **columns):
        for word in words:
            word.append("!")
        if len(completions) > 1:
            raise RuntimeError("one at a time")
        return [float(len(word)) for word in words]

    words = [["a"], ["b", "c"]]
    reward = guard(spoiling, "spoiling", on_error="skip", max_error_rate=1.0)
    reward(["x", "y"], words=words)
    assert words == [["a"], ["b", "c"]]
    assert guard(spoiling, "spoiling")(["x"], words=words[:1]) == [2.0]


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([1, [2]], lambda value: value[1].append(3)),
        ({"a": {"b": [1]}}, lambda value: value["a"]["b"].clear()),
        ({1, 2}, lambda value: value.add(3)),
        (([1],), lambda value: value[0].append(2)),
        (torch.ones(2), lambda value: value.zero_()),
        (torch.ones(2).numpy(), lambda value: value.fill(0)),
    ],
)
def test_t14_whatever_can_be_changed_in_a_column_is_copied(value, change):
    def meddle(completions, column, **columns):
        change(column[0])
        return [1.0]

    before = repr(value)
    assert guard(meddle, "meddle")(["x"], column=[value]) == [1.0]
    assert repr(value) == before


def test_t14_what_is_no_data_is_shared():
    """A reward may talk to what it is handed on purpose: environments, the state of the trainer."""

    class Environment:
        steps = 0

    def play(completions, environments, **columns):
        environments[0].steps += 1
        return [1.0]

    environment = Environment()
    guard(play, "play")(["x"], environments=[environment])
    assert environment.steps == 1


# -- P13: columns of other trainers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize(
    "columns",
    [
        {"chosen": "a cat", "rejected": "a dog"},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"rejected": [{"role": "assistant", "content": "no"}], "messages": "plain"},
    ],
)
def test_p13_rewards_read_the_columns_of_preferences_and_chats(often_ending_model, tmp_path, columns, with_images):
    seen = []

    def named(completions, **given):
        seen.append({name: given[name][0] for name in columns})
        return [float(place) for place in range(len(completions))]

    rows = questions(8, **{**columns, **({"images": picture} if with_images else {})})
    trainer = make_trainer(often_ending_model, tmp_path, named, rows, max_steps=1, dynamic_sampling_rounds=1)
    trainer.train()
    assert seen == [columns]
