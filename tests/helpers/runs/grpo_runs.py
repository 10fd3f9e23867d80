"""Small GRPO runs on a CPU, and what their advantages and losses should be by arithmetic of plain numbers.

Rewards depend on the number in the prompt and the first token of the completion alone, so that they can be worked out
anew from a batch, whatever was drawn, replaced or shuffled on its way there.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image

from trainers.grpo import GRPOConfig, GRPOTrainer
from trainers.schedules import adaptive_kl_beta

G = 4
QUIET = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "remove_unused_columns": False,
}
SMALL = QUIET | {
    "per_device_train_batch_size": 16,
    "num_generations": G,
    "max_completion_length": 6,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "model_init_kwargs": {"dtype": "float32"},
}


def questions(count: int, **columns: Any) -> Dataset:
    """Rows with a number in the prompt; of a column that is a function, its value for each number."""
    rows = [
        {
            "id": f"r{number}",
            "number": number,
            "prompt": [{"role": "user", "content": f"question {number}?"}],
            **{name: value(number) if callable(value) else value for name, value in columns.items()},
        }
        for number in range(count)
    ]
    return Dataset.from_list(rows)


def picture(number: int) -> list[Image.Image]:
    return [Image.new("RGB", (56, 56), (20 * number % 256, 90, 200))]


def make_trainer(model, tmp_path, rewards, rows=None, cls=GRPOTrainer, config=GRPOConfig, init=None, **settings):
    """A trainer of the tiny model (its folder, or a model made of it)."""
    args = config(**{**SMALL, "output_dir": str(tmp_path / "run"), **settings})
    return cls(model, rewards, args, questions(12) if rows is None else rows, **(init or {}))


# -- rewards ----------------------------------------------------------------------------------------------------------


def score_a(number: int, token: int) -> float | None:
    """Flat for every third prompt; does not apply to some rows."""
    if token % 7 == 0:
        return None
    return 0.5 if number % 3 == 0 else token % 13 / 13


def score_b(number: int, token: int) -> float | None:
    """On another scale; applies to even numbers alone, and flat where `score_a` is."""
    if token % 7 == 0 or number % 2:
        return None
    return 10.0 if number % 3 == 0 else float(token % 5 * 10)


SCORES = {"a": score_a, "b": score_b}


def as_reward(name: str):
    def reward(completions, completion_ids, number, **columns):
        return [SCORES[name](*row) for row in zip(number, (ids[0] for ids in completion_ids), strict=True)]

    reward.__name__ = name
    return reward


# -- recording --------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """One micro-batch, as it reached the loss."""

    inputs: dict[str, Any]
    loss: float
    beta: float
    log_probs: torch.Tensor
    entropies: torch.Tensor


@dataclass
class Record:
    """What a run rolled out, and the micro-batches that it learned from."""

    rollouts: list[dict[str, Any]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


def copied(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def record(trainer) -> Record:
    """Lets a trainer note its rollouts and micro-batches."""
    found, forward = Record(), []
    roll_out, loss_of = trainer._generate_and_score_completions, trainer._compute_loss
    log_probs_of = trainer._get_per_token_logps_and_entropies

    def noted_roll_out(inputs):
        batch = roll_out(inputs)
        batch["row"] = torch.arange(len(batch["completion_ids"]))  # which a micro-batch tells its rows by
        found.rollouts.append(copied(batch))
        return batch

    def noted_log_probs(*args, **kwargs):
        forward[:] = log_probs_of(*args, **kwargs)
        return tuple(forward)

    def noted_loss(model, inputs):
        kept, beta = copied(inputs), trainer.beta
        loss = loss_of(model, inputs)
        found.parts.append(Part(kept, loss.item(), beta, forward[0].detach().clone(), forward[1].detach().clone()))
        return loss

    trainer._generate_and_score_completions = noted_roll_out
    trainer._compute_loss = noted_loss
    trainer._get_per_token_logps_and_entropies = noted_log_probs
    return found


# -- the same by hand -------------------------------------------------------------------------------------------------


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def deviation(values: list[float]) -> float:
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))


def normalised(values: list[float | None]) -> list[float | None]:
    """In deviations from the mean of those that are there; 0 where fewer than two are, or all are equal."""
    there = [value for value in values if value is not None]
    if len(there) < 2 or max(there) == min(there):
        return [None if value is None else 0.0 for value in values]
    return [None if value is None else (value - mean(there)) / (deviation(there) + 1e-4) for value in values]


def summed(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) if there else None


def rows_of(batch: dict[str, Any], tokenizer) -> list[tuple[int, int]]:
    """Number in the prompt and first token of the completion, of each row."""
    prompts = tokenizer.batch_decode(batch["prompt_ids"])
    numbers = [int(re.search(r"question (\d+)", prompt)[1]) for prompt in prompts]
    return list(zip(numbers, batch["completion_ids"][:, 0].tolist(), strict=True))


def compared_by_hand(rows: list[tuple[int, int]], weights: dict[str, float], args) -> list[list[float | None]]:
    """What the rows of each group are compared by."""
    groups = []
    for start in range(0, len(rows), G):
        group = rows[start : start + G]
        by_reward = [[SCORES[name](*row) for row in group] for name in weights]
        if args.multi_objective_aggregation == "normalize_then_sum":
            by_reward = [normalised(values) for values in by_reward]
        weighted = [
            [None if value is None else weight * value for value in values]
            for weight, values in zip(weights.values(), by_reward, strict=True)
        ]
        groups.append([summed(list(of_row)) for of_row in zip(*weighted, strict=True)])
    return groups


def is_flat(group: list[float | None]) -> bool:
    there = [value for value in group if value is not None]
    return len(there) < 2 or max(there) - min(there) <= 1e-6 * max(abs(value) for value in there)


def advantages_by_hand(compared: list[list[float | None]], args) -> list[float]:
    everything = [value for group in compared for value in group if value is not None]
    whole = args.multi_objective_aggregation == "normalize_then_sum"
    found = []
    for group in compared:
        there = [value for value in group if value is not None]
        for value in group:
            if value is None or is_flat(group):
                found.append(0.0)
                continue
            middle = mean(everything) if whole else mean(there)
            spread = everything if whole or args.scale_rewards == "batch" else there
            scale = 1.0 if args.scale_rewards == "none" and not whole else deviation(spread) + 1e-4
            advantage = (value - middle) / scale
            clip = math.inf if args.advantage_clip is None else args.advantage_clip
            found.append(min(max(advantage, -clip), clip))
    return found


def counted_by_hand(compared: list[list[float | None]], top_k: int | None) -> list[bool]:
    """The rows that stay in the loss: those with a reward, and of them the best of each group under a curriculum."""
    found = []
    for group in compared:
        places = [place for place, value in enumerate(group) if value is not None]
        best = sorted(places, key=lambda place: -group[place])[:top_k]
        found += [place in best for place in range(len(group))]
    return found


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def token_ratios(args, log_probs: list[float], old: list[float]) -> list[float]:
    """How much likelier each token has become, or the whole row, taken to the power of 1 / its tokens."""
    logs = [new - before for new, before in zip(log_probs, old, strict=True)]
    whole = args.importance_sampling_level == "sequence" and logs
    return [math.exp(mean(logs) if whole else log) for log in logs]


def token_kls(args, reference: list[float], log_probs: list[float], old: list[float]) -> list[float]:
    """Schulman's k3 of each token, weighted by its ratio where TRL corrects for old samples."""
    apart = [far - new for far, new in zip(reference, log_probs, strict=True)]
    ratios = token_ratios(args, log_probs, old) if args.use_bias_correction_kl else [1.0] * len(apart)
    return [(math.exp(x) - x - 1) * ratio for x, ratio in zip(apart, ratios, strict=True)]


def token_losses(args, advantage: float, log_probs: list[float], old: list[float]) -> list[float]:
    """The policy term of each token of a row."""
    ratios = token_ratios(args, log_probs, old)
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    if args.loss_type == "cispo":
        return [-min(ratio, high) * advantage * new for ratio, new in zip(ratios, log_probs, strict=True)]
    if args.loss_type == "sapo":
        heat = args.sapo_temperature_pos if advantage > 0 else args.sapo_temperature_neg
        return [-4 / heat / (1 + math.exp(-heat * (ratio - 1))) * advantage for ratio in ratios]
    if args.loss_type == "vespo":
        log_weight = sum(new - before for new, before in zip(log_probs, old, strict=True))
        power, rate = (2.0, 3.0) if advantage >= 0 else (3.0, 2.0)
        weight = math.exp(rate + power * log_weight - rate * math.exp(log_weight))
        return [-weight * advantage * new for new in log_probs]
    held = [min(max(ratio, 1 - args.epsilon), 1 + high) for ratio in ratios]
    return [-min(ratio * advantage, kept * advantage) for ratio, kept in zip(ratios, held, strict=True)]


def loss_by_hand(part: Part, args, keep: list[bool], share: float, tokens: int) -> tuple[float, float | None]:
    """Loss and KL of a micro-batch, as the documentation promises them.

    Args:
        keep: rows of the micro-batch that are in the loss.
        share: of the rollout's rows, how many are; a mean over rows counts them alone.
        tokens: of the loss, in the whole rollout.
    """
    inputs, rows = part.inputs, []
    old, reference = inputs.get("old_per_token_logps", part.log_probs), inputs.get("ref_per_token_logps")
    for row, kept in enumerate(keep):
        places = [place for place, there in enumerate(inputs["completion_mask"][row].tolist()) if there and kept]
        of = [tensor[row, places].tolist() for tensor in (part.log_probs, old, part.entropies)]
        kl = [0.0] * len(places)
        if part.beta:
            kl = token_kls(args, reference[row, places].tolist(), of[0], of[1])
        policy = token_losses(args, inputs["advantages"][row].item(), of[0], of[1]) if places else []
        rows.append((policy, kl, of[2]))
    every_entropy = [value for _, _, entropies in rows for value in entropies]
    bar = quantile(every_entropy, 1 - args.top_entropy_quantile) if every_entropy else 0.0
    acts = args.top_entropy_quantile < 1
    sums, bonus_of, kls = [], [], []
    for policy, kl, entropies in rows:
        on = [1.0 if not acts or value >= bar else 0.0 for value in entropies]
        sums.append([p * o + part.beta * k for p, k, o in zip(policy, kl, on, strict=True)])
        bonus_of += [value for value, o in zip(entropies, on, strict=True) if o]
        kls += kl
    accumulation, everything = args.gradient_accumulation_steps, sum(sum(values) for values in sums)
    if args.loss_type in ("grpo", "sapo"):
        loss = sum(mean(values) for values in sums if values) / (len(rows) * share)
    elif args.loss_type == "luspo":
        loss = everything / (len(rows) * share)
    elif args.loss_type == "dr_grpo":
        loss = everything / (len(rows) * share * args.max_completion_length)
    elif args.loss_type == "bnpo":
        loss = everything / max(len(every_entropy), 1)
    else:  # the tokens of the rollout, as far as they belong to one optimizer step
        loss = everything / (max(tokens, 1) / args.steps_per_generation)
    bonus = mean(bonus_of) if bonus_of else 0.0
    kl = mean(kls) if kls else None
    return (loss - args.entropy_coef * bonus) / accumulation, kl


def train_and_check(trainer, weights: dict[str, float]) -> tuple[Record, list[list[float | None]]]:
    """Trains, and compares every advantage, loss and beta of the run with those made by hand.

    Args:
        weights: of the rewards, by name in `SCORES`.

    Returns:
        What was recorded, and what the rows of the last rollout are compared by.
    """
    args, found = trainer.args, record(trainer)
    trainer.train()
    beta, kls, step = args.beta, [], 0
    rollout_every = args.steps_per_generation * args.num_iterations
    for number, part in enumerate(found.parts):
        if number % rollout_every == 0:
            batch = found.rollouts[number // rollout_every]
            compared = compared_by_hand(rows_of(batch, trainer.processing_class), weights, args)
            advantages = advantages_by_hand(compared, args)
            assert batch["advantages"].tolist() == pytest.approx(advantages, abs=2e-4)
            early = args.curriculum_top_k if step < args.curriculum_share * args.max_steps else None
            counted = counted_by_hand(compared, early)
            lengths = batch["completion_mask"].sum(dim=1).tolist()
            tokens = sum(length for length, kept in zip(lengths, counted, strict=True) if kept)
        where = part.inputs["row"].tolist()
        assert part.inputs["advantages"].tolist() == pytest.approx([advantages[row] for row in where], abs=2e-4)
        assert part.beta == pytest.approx(beta)
        keep, share = [counted[row] for row in where], sum(counted) / len(counted)
        loss, kl = loss_by_hand(part, args, keep, share, tokens)
        assert part.loss == pytest.approx(loss, rel=1e-4, abs=1e-5)
        kls += [] if kl is None else [kl]
        if (number + 1) % args.gradient_accumulation_steps == 0:
            step += 1
            if args.adaptive_kl and kls:
                beta = adaptive_kl_beta(beta, mean(kls), args.kl_target_min, args.kl_target_max)
            kls = []
    assert step == args.max_steps
    return found, compared
