"""GRPO's additions together: two steps of each combination, against advantages and losses made by hand."""

from itertools import combinations, product

import pytest
from grpo_runs import as_reward, is_flat, make_trainer, train_and_check

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
FACTORS = {
    "loss_type": [{"loss_type": name} for name in LOSS_TYPES],
    "dynamic": [{}, {"dynamic_sampling_rounds": 2}],
    "curriculum": [{}, {"curriculum_top_k": 2, "curriculum_share": 0.5}],
    "aggregation": [{}, {"multi_objective_aggregation": "normalize_then_sum"}],
    "entropy": [{}, {"entropy_coef": 0.1}],
    "scale": [{}, {"scale_rewards": "batch"}, {"scale_rewards": "none"}],
    "kl": [{}, {"beta": 0.2}, {"beta": 0.2, "adaptive_kl": True, "kl_target_min": 0.0, "kl_target_max": 0.0}],
    "quantile": [{}, {"top_entropy_quantile": 0.4}],
    "level": [{}, {"importance_sampling_level": "sequence"}],
    "reuse": [
        {},
        {"num_iterations": 2},
        {"per_device_train_batch_size": 8, "steps_per_generation": 2},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    ],
    "truncated": [{}, {"mask_truncated_completions": True, "max_completion_length": 60}],
    "temperature": [{}, {"temperature_schedule": "linear", "temperature_end": 0.7}],
    "clip": [{}, {"advantage_clip": 0.5}],
    "together": [{}, {"keep_groups_together": False}],
}
TOGETHER = ("dynamic", "curriculum", "aggregation", "entropy")


def allowed(choice: dict[str, int]) -> bool:
    """Not what TRL warns of: importance ratios of sequences are for the losses that are means over rows."""
    loss = LOSS_TYPES[choice["loss_type"]]
    return choice["level"] == 0 or loss in ("grpo", "luspo", "sapo")


def pairs_of(choice: dict[str, int]) -> set:
    return set(combinations(sorted(choice.items()), 2))


def covering() -> list[dict[str, int]]:
    """Choices in which every two options of different factors meet, and with each loss all of `TOGETHER` at once.

    Found greedily, always the same ones.
    """
    names = list(FACTORS)
    missing = {
        pair
        for one, other in combinations(sorted(names), 2)
        for pair in product(
            [(one, i) for i in range(len(FACTORS[one]))], [(other, i) for i in range(len(FACTORS[other]))]
        )
        if allowed({"loss_type": 0, "level": 0} | dict(pair))
    }
    found = []
    while missing:
        alone = set(range(len(LOSS_TYPES))) - {choice["loss_type"] for choice in found}
        choice = dict.fromkeys(TOGETHER, 1) | {"loss_type": min(alone)} if alone else dict(min(missing))
        for name in names:
            if name not in choice:
                options = [
                    {**choice, name: place}
                    for place in range(len(FACTORS[name]))
                    if allowed({"loss_type": 0, "level": 0} | {**choice, name: place})
                ]
                choice = max(options, key=lambda option: len(pairs_of(option) & missing))
        missing -= pairs_of(choice)
        found.append(choice)
    return found


def settings_of(choice: dict[str, int]) -> dict:
    return {key: value for name in FACTORS for key, value in FACTORS[name][choice[name]].items()}


CHOICES = covering()


def label(choice: dict[str, int]) -> str:
    return "-".join(f"{key}={value}" for key, value in settings_of(choice).items())


def test_every_two_additions_meet_with_every_loss():
    for (one, other), loss in product(combinations(TOGETHER, 2), range(len(LOSS_TYPES))):
        assert any(choice[one] == choice[other] == 1 and choice["loss_type"] == loss for choice in CHOICES)
    met = set.union(*(pairs_of(choice) for choice in CHOICES))
    options = [(name, place) for name in FACTORS for place in range(len(FACTORS[name]))]
    for one, other in combinations(sorted(options), 2):
        assert (
            one[0] == other[0] or (one, other) in met or not allowed({"loss_type": 0, "level": 0} | dict([one, other]))
        )


@pytest.mark.parametrize("choice", CHOICES, ids=label)
def test_advantages_and_losses_equal_those_made_by_hand(often_ending_model, tmp_path, choice):
    settings = settings_of(choice)
    trainer = make_trainer(often_ending_model, tmp_path, [as_reward("a"), as_reward("b")], reward_weights=[1.0, 0.25],
                           **settings)  # fmt: skip
    found, compared = train_and_check(trainer, {"a": 1.0, "b": 0.25})
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    if trainer.args.dynamic_sampling_rounds:
        flat = sum(is_flat(group) for group in compared) / len(compared)
        assert logged["dynamic_sampling/frac_zero_std_left"] == pytest.approx(flat)
    if trainer.args.temperature_schedule == "linear":
        assert logged["rollout_temperature"] == [1.0, 0.7][len(found.rollouts) - 1]
