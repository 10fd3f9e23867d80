"""RCE, offline GRPO and rewards of groups: by hand, and against what the earlier system returned."""

import json
import math

import pytest
import torch
from places import ORACLES
from safetensors.torch import load_file

from trainers.losses import (
    best_weights,
    ends_of_group,
    group_advantages,
    grpo_loss,
    kl_k3,
    normalise_rewards,
    per_step_or_sequence,
    rce_loss,
    softmax_weights,
)
from trainers.schedules import adaptive_kl_beta, linear_temperature

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def every(values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values, dtype=torch.bool)


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_rce_by_hand():
    cross_entropy = torch.tensor([[1.0, 4.0], [2.0, 7.0]])
    rewards = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    # weights 1/4 and 3/4 at T = 1; 1/2 each for equal rewards
    expected = ((1 / 4) * 1 + (3 / 4) * 4 + (1 / 2) * 2 + (1 / 2) * 7) / 2
    assert rce_loss(cross_entropy, rewards, every(rewards), 1.0).item() == pytest.approx(expected)
    root = math.sqrt(3)  # exp(log 3 / 2)
    expected = (1 / (1 + root) * 1 + root / (1 + root) * 4 + 4.5) / 2
    assert rce_loss(cross_entropy, rewards, every(rewards), 2.0).item() == pytest.approx(expected)
    assert rce_loss(cross_entropy, rewards, every(rewards), 1.0, top1=True).item() == (4 + 2) / 2


def test_candidates_that_do_not_count_may_hold_anything():
    cross_entropy = torch.tensor([[1.0, torch.nan, 3.0]], requires_grad=True)
    rewards, valid = torch.tensor([[0.5, 9.0, 0.5]]), torch.tensor([[True, False, True]])
    loss = rce_loss(cross_entropy, rewards, valid, 0.5)
    loss.backward()
    assert loss.item() == 2
    assert cross_entropy.grad.tolist() == [[0.5, 0.0, 0.5]]


@pytest.mark.parametrize("value", [0.6, 1 / 3, -1e4])
@pytest.mark.parametrize("size", [1, 8, 10, 16, 20])
def test_equal_rewards_and_single_candidates_leave_no_noise(value, size):
    rewards = torch.full((1, size), value)
    assert softmax_weights(rewards, every(rewards), 0.1)[0].tolist() == pytest.approx([1 / size] * size)
    for method in ("z_score", "z_score_clamp", "rank"):
        assert (normalise_rewards(rewards, every(rewards), method) == 0).all()
    assert (group_advantages(rewards, every(rewards), std_floor=0.1, clip=5.0, epsilon=0.0) == 0).all()


def test_weights_of_a_group_without_rewards_are_zero():
    none = torch.zeros(1, 3, dtype=torch.bool)
    assert softmax_weights(torch.zeros(1, 3), none, 1.0).tolist() == [[0, 0, 0]]
    assert best_weights(torch.zeros(1, 3), none, 1).tolist() == [[0, 0, 0]]


def test_best_weights_are_shared_evenly():
    rewards, valid = torch.tensor([[3.0, 1.0, 2.0, 9.0]]), torch.tensor([[True, True, True, False]])
    assert best_weights(rewards, valid, 2).tolist() == [[0.5, 0.0, 0.5, 0.0]]


def test_normalised_rewards_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 1.0, 6.0, 99.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    std = math.sqrt((4 + 1 + 1 + 16) / 3)  # mean 2
    expected = torch.tensor([[-2 / std, -1 / std, -1 / std, 4 / std, 0.0]])
    torch.testing.assert_close(normalise_rewards(rewards, valid, "z_score"), expected)
    torch.testing.assert_close(normalise_rewards(rewards, valid, "z_score_clamp", 0.5), expected.clamp(-0.5, 0.5))
    # places: 6.0 first; the two 1.0 share places 1 and 2; 0.0 last
    assert normalise_rewards(rewards, valid, "rank").tolist() == [[-1.0, 0.0, 0.0, 1.0, 0.0]]
    assert normalise_rewards(rewards, valid, "raw").tolist() == [[0.0, 1.0, 1.0, 6.0, 0.0]]
    with pytest.raises(ValueError, match="method: expected one of raw, z_score, z_score_clamp, rank, found 'median'"):
        normalise_rewards(rewards, valid, "median")


def test_k3_by_hand():
    policy, reference = torch.tensor([0.0, -1.0, -3.0]), torch.tensor([0.0, -2.0, -1.0])
    expected = torch.tensor([0.0, math.e - 2, math.exp(-2) + 1])
    torch.testing.assert_close(kl_k3(policy, reference), expected)
    assert kl_k3(reference, reference).tolist() == [0, 0, 0]


def test_the_curriculum_keeps_the_worst_too():
    rewards = torch.tensor([[0.4, 0.9, 0.1, 0.5, 0.2, 0.0]])
    valid = torch.tensor([[True, True, True, True, True, False]])
    assert ends_of_group(rewards, valid, 1).tolist() == [[False, True, True, False, False, False]]
    assert ends_of_group(rewards, valid, 2).tolist() == [[False, True, True, True, True, False]]
    assert ends_of_group(rewards, valid, 5).equal(valid)


def test_grpo_by_hand():
    """One group of two pointers, of two steps and one."""
    log_probs = torch.tensor([[[-1.0, -2.0], [-0.5, 0.0]]], requires_grad=True)
    old = torch.tensor([[[-1.5, -2.0], [-0.7, 0.0]]])
    reference = torch.tensor([[[-1.0, -1.0], [-0.5, 0.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    advantages = torch.tensor([[1.0, -1.0]])
    counted = every(advantages)

    total, exists = per_step_or_sequence(log_probs, mask, "sequence")
    assert total.squeeze(2).tolist() == [[-3.0, -0.5]]
    terms = grpo_loss(
        total,
        per_step_or_sequence(old, mask, "sequence")[0],
        per_step_or_sequence(reference, mask, "sequence")[0],
        advantages,
        exists,
        counted,
        beta=0.5,
    )
    first, second = math.exp(0.5), math.exp(0.2)  # ratios: the first is cut to 1.2, the second is not: A is negative
    policy = -(1.2 - second) / 2
    kl = (math.exp(-1) - 1 + 1) / 2
    assert terms.policy.item() == pytest.approx(policy, abs=1e-6)
    assert terms.kl.item() == pytest.approx(kl, abs=1e-6)
    assert terms.loss.item() == pytest.approx(policy + 0.5 * kl, abs=1e-6)
    assert terms.ratio.item() == pytest.approx((first + second) / 2)
    assert terms.clipped.item() == 0.5
    terms.policy.sum().backward()
    assert log_probs.grad[0, 0].tolist() == [0, 0]
    assert log_probs.grad[0, 1, 0].item() == pytest.approx(second / 2)

    steps, exists = per_step_or_sequence(log_probs, mask, "step")
    terms = grpo_loss(steps, old, reference, advantages, exists, counted, beta=0.5)
    assert terms.policy.item() == pytest.approx(-((1.2 + 1) / 2 - second) / 2, abs=1e-6)
    assert terms.kl.item() == pytest.approx((0 + math.exp(-1)) / 2 / 2)
    assert per_step_or_sequence(log_probs, mask, "sequence", mean=True)[0].squeeze(2).tolist() == [[-1.5, -0.5]]
    with pytest.raises(ValueError, match="level: expected 'sequence' or 'step', found 'token'"):
        per_step_or_sequence(log_probs, mask, "token")


def test_grpo_leaves_out_what_does_not_count():
    log_probs = torch.tensor([[[-1.0], [torch.nan], [-2.0]], [[torch.nan]] * 3])
    counted = torch.tensor([[True, False, True], [False, False, False]])
    old = torch.tensor([[[-1.0], [0.0], [-2.0]], [[0.0]] * 3])
    terms = grpo_loss(log_probs, old, old, torch.tensor([[2.0, 9.0, -1.0], [0.0] * 3]), every(log_probs), counted)
    assert terms.policy.tolist() == [-(2 - 1) / 2, 0]
    assert terms.kl.tolist() == [0, 0]
    assert terms.ratio.tolist() == [1, 0]


# -- the earlier system -----------------------------------------------------------------------------------------------


def number(value):
    if isinstance(value, list):
        return [number(item) for item in value]
    return float(value)


@pytest.fixture(scope="module")
def reward_cases(oracle):
    """Function: name of a function -> its cases (keyword arguments, output) that have one right answer."""
    cases = oracle("rewards")["cases"]

    def of(name: str) -> list[tuple[dict, object]]:
        right = [case for case in cases if case["fn"] == name and not case.get("ill_conditioned")]
        assert right
        return [(case["kwargs"], case["out"]) for case in right if not case.get("tie_dependent")]

    return of


def groups_of(values) -> tuple[torch.Tensor, torch.Tensor, torch.Size]:
    """Rewards as groups, all valid, and the shape that they came in."""
    tensor = torch.tensor(number(values))
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows, every(rows), tensor.shape


def test_z_scores_of_the_oracle(reward_cases):
    for kwargs, out in reward_cases("normalize_rewards_zscore"):
        rewards, valid, shape = groups_of(kwargs["rewards"])
        found = normalise_rewards(rewards, valid, "z_score").view(shape)
        torch.testing.assert_close(found, torch.tensor(number(out)), **CLOSE)


def test_advantages_of_the_oracle(reward_cases):
    for kwargs, out in reward_cases("compute_group_relative_advantage"):
        rewards, valid, shape = groups_of(kwargs["rewards"])
        scale = "group" if kwargs.get("normalize", True) else "none"
        found = group_advantages(rewards, valid, scale, clip=kwargs.get("clip_range"), epsilon=0.0)
        torch.testing.assert_close(found.view(shape), torch.tensor(number(out)), **CLOSE)


def test_softmax_weights_of_the_oracle(reward_cases):
    for kwargs, out in reward_cases("compute_softmax_weights"):
        rewards, valid, shape = groups_of(kwargs["rewards"])
        found = softmax_weights(rewards, valid, kwargs.get("temperature", 1.0)).view(shape)
        torch.testing.assert_close(found, torch.tensor(number(out)), **CLOSE)


def test_kl_of_the_oracle(reward_cases):
    for kwargs, out in reward_cases("compute_kl_penalty"):
        new, old = torch.tensor(number(kwargs["log_probs_new"])), torch.tensor(number(kwargs["log_probs_old"]))
        assert kl_k3(new, old).mean().item() == pytest.approx(float(out), rel=1e-4, abs=1e-5)


def test_schedules_of_the_oracle(reward_cases):
    for kwargs, out in reward_cases("compute_temperature_schedule"):
        order = ("current_step", "total_steps", "start_temp", "end_temp")
        given = [kwargs.get(name, {"start_temp": 2.0, "end_temp": 0.5}.get(name)) for name in order]
        assert linear_temperature(*given) == pytest.approx(float(out), rel=1e-4, abs=1e-5)
    names = {"kl_target_min": "target_min", "kl_target_max": "target_max", "adjustment_factor": "factor"}
    names |= {"current_kl": "kl", "current_beta": "beta", "min_beta": "beta_min", "max_beta": "beta_max"}
    for kwargs, out in reward_cases("adaptive_kl_beta"):
        found = adaptive_kl_beta(**{names.get(key, key): value for key, value in kwargs.items()})
        assert found == pytest.approx(float(out), rel=1e-4, abs=1e-8)


def test_normalisation_of_a_data_set_of_the_oracle(reward_cases):
    methods = {"z_score": "z_score", "z_score_clamp": "z_score_clamp", "rank_normalize": "rank"}
    for kwargs, out in reward_cases("dataset_reward_normalization"):
        rewards, valid, _ = groups_of(out["raw"])
        found = normalise_rewards(rewards, valid, methods[kwargs["method"]], kwargs.get("clamp", 3.0))
        torch.testing.assert_close(found, torch.tensor([number(out["normalized"])]), **CLOSE)


@pytest.mark.parametrize("fn", ["normalize_rewards_zscore", "dataset_reward_normalization"])
def test_where_the_earlier_system_returned_noise_there_is_none(oracle, fn):
    cases = [case for case in oracle("rewards")["cases"] if case["fn"] == fn and case.get("ill_conditioned")]
    assert cases
    for case in cases:
        raw = case["kwargs"]["rewards"] if "rewards" in case["kwargs"] else case["out"]["raw"]
        rewards, valid, _ = groups_of(raw)
        flat = rewards.amax(dim=1) - rewards.amin(dim=1) < 1e-6 * rewards.abs().amax(dim=1).clamp(min=1e-12)
        for method in ("z_score", "rank"):
            found = normalise_rewards(rewards, valid, method)
            assert found.isfinite().all()
            assert (found[flat | (valid.sum(dim=1) < 2)] == 0).all()


TENSORS = load_file(ORACLES / "losses.public.safetensors")
LOSSES = json.loads((ORACLES / "losses.public.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(params=LOSSES, ids=lambda case: case["id"])
def case(request):
    """A stored case with `cross_entropy` (B, G), computed from its logits, and its tensors."""
    stored, config = request.param, request.param["config"]
    tensor = {name: TENSORS[f"{stored['id']}/{name}"] for name in ("in/beam_labels", "in/beam_rewards")}
    logits, labels = TENSORS[f"{stored['id']}/out/teacher_logits"], tensor["in/beam_labels"]
    steps = torch.nn.functional.cross_entropy(
        logits.flatten(0, 2), labels.flatten(), reduction="none", label_smoothing=config["label_smoothing"]
    ).view(labels.shape)  # (B, G, S)
    return {
        **stored,
        "steps": steps,
        "rewards": tensor["in/beam_rewards"],
        "log_probs": TENSORS[f"{stored['id']}/out/log_probs"].unsqueeze(2),
        "old": TENSORS[f"{stored['id']}/in/old_log_probs"].unsqueeze(2),
    }


def test_rce_of_the_oracle(case):
    cross_entropy, rewards, scalars = case["steps"].sum(dim=2), case["rewards"], case["scalars"]
    for temperature in (0.1, 0.5, 1.0, 2.0):
        found = rce_loss(cross_entropy, rewards, every(rewards), temperature)
        torch.testing.assert_close(found.item(), scalars[f"rce_T{temperature}"], **CLOSE)
        if "ties" not in case["flags"]:  # its ranks run from 1 to 0, ours from 1 to -1
            ranks = normalise_rewards(rewards, every(rewards), "rank")
            found = rce_loss(cross_entropy, ranks, every(rewards), 2 * temperature)
            torch.testing.assert_close(found.item(), scalars[f"rce_rank_T{temperature}"], **CLOSE)


def test_top1_of_the_oracle(case):
    """It takes the first beam for the best one, and the mean over shots."""
    first_is_best = torch.zeros_like(case["rewards"])
    first_is_best[:, 0] = 1
    found = rce_loss(case["steps"].mean(dim=2), first_is_best, every(first_is_best), 1.0, top1=True)
    torch.testing.assert_close(found.item(), case["scalars"]["rce_top1"], **CLOSE)
    torch.testing.assert_close(found.item(), case["scalars"]["ce_first_beam_loss"], **CLOSE)


def oracle_terms(case: dict, rewards: torch.Tensor, log_probs: torch.Tensor, old: torch.Tensor, beta: float):
    """Terms and advantages as the earlier system has them: everything inside of what is passed."""
    config, valid = case["config"], every(rewards)
    advantages = group_advantages(rewards, valid, std_floor=0.1, clip=config["advantage_clip"], epsilon=0.0)
    epsilon = config["clip_epsilon"]
    terms = grpo_loss(log_probs, old, old, advantages, every(log_probs), valid, epsilon, epsilon, beta)
    return terms, advantages


def check_grpo(case: dict, name: str, terms, advantages: torch.Tensor) -> None:
    scalars = case["scalars"]
    found = {
        "loss": terms.loss.mean(),
        "ppo_loss": terms.policy.mean(),
        "kl_loss": case["config"]["kl_beta"] * terms.kl.mean(),
        "kl": terms.kl.mean(),
        "mean_ratio": terms.ratio.mean(),
        "mean_advantage": advantages.mean(),
        "std_advantage": advantages.std(),
        "max_advantage": advantages.abs().max(),
    }
    for key, value in found.items():
        torch.testing.assert_close(
            value.item(), scalars[f"grpo_{name}_{key}"], **CLOSE, msg=lambda m, k=key: f"{k}: {m}"
        )
    torch.testing.assert_close(terms.policy.mean().item(), scalars[f"grpo_clip_only_{name}_loss"], **CLOSE)


def test_grpo_of_the_oracle(case):
    beta = case["config"]["kl_beta"]
    terms, advantages = oracle_terms(case, case["rewards"], case["log_probs"], case["old"], beta)
    stored = TENSORS[f"{case['id']}/out/advantage_zscore"]
    torch.testing.assert_close(advantages, stored, **CLOSE)
    check_grpo(case, "topNone", terms, advantages)
    torch.testing.assert_close(
        kl_k3(case["log_probs"], case["old"]).mean().item(), case["scalars"]["kl_divergence"], **CLOSE
    )


def test_grpo_inside_the_three_best_of_the_oracle(case):
    """What the earlier system does: it never sees the others, and compares the three with themselves."""
    if "top3_tie" in case["flags"]:
        pytest.skip("which candidates it takes depends on the order of equal ones")
    best = case["rewards"].topk(3, dim=1).indices
    rewards = case["rewards"].gather(1, best)
    log_probs, old = (case[name].gather(1, best.unsqueeze(2)) for name in ("log_probs", "old"))
    check_grpo(case, "top3", *oracle_terms(case, rewards, log_probs, old, case["config"]["kl_beta"]))
