"""Mistakes that the loop might make, as what to put in which place: tests show that each is seen."""

from dataclasses import replace

import torch

from models.decoding import rollout
from models.decoding.attention import Step, StepMask
from models.decoding.cache import OwnKeys, RolloutCache
from models.decoding.forward import forwards
from models.decoding.forward.layers import Rotation, Rotations
from models.decoding.rollout import RollOut
from models.decoding.streams import AsTransformers
from models.families.gemma import Gemma3

PROMPTS, MASK, BY_ROW, KEEP_ROWS, NOISE, ANGLES = (
    rollout.different_prompts,
    forwards.StepMask,
    Step.by_row,
    RolloutCache.keep_rows,
    AsTransformers._of,
    Rotations._made,
)


def with_prompts(**mistakes):
    """What stands for `different_prompts`."""

    def find(inputs, config):
        prompts = PROMPTS(inputs, config)
        return replace(prompts, **{name: wrong(getattr(prompts, name)) for name, wrong in mistakes.items()})

    return find


def with_numbers_of(stream, other):
    """What stands for `pick` of a stream: by the numbers of other rows and steps.

    Args:
        other: (place, rows, steps) -> row, step.
    """
    right = stream.pick

    def pick(self, scores, rows, steps, ids):
        found = [other(place, rows, steps) for place in range(len(rows))]
        return right(self, scores, [row for row, _ in found], [step for _, step in found], ids)

    return pick


def first_prompt(self, count):
    return tuple(one[:1].expand(count, -1, -1, -1) for one in (self.prompt_keys, self.prompt_values))


def nothing_of_sums(self, table):
    """Sums have no width: (n, heads, group, queries)."""
    return BY_ROW(self, table - float("inf") if table.ndim == 4 else table)


WINDOWS = ("full_attention", "sliding_attention")


def angles_of_the_first(self, hidden, first, width):
    one = ANGLES(self, hidden, first, 1)
    return Rotation(one.cos.expand(-1, width, -1, -1), one.sin.expand(-1, width, -1, -1))


MISTAKES = {
    "no window": ("gemma3", Gemma3, "step_masks", lambda _, text, make: dict.fromkeys(WINDOWS, make(None))),
    "no window in Gemma 4": ("gemma4", Gemma3, "step_masks", lambda _, text, make: dict.fromkeys(WINDOWS, make(None))),
    "windows are one too wide": (
        "gemma3",
        forwards,
        "StepMask",
        lambda step, size, window: MASK(step, size, window and window + 1),
    ),
    "padding is seen": ("qwen2_vl", rollout, "different_prompts", with_prompts(padding=lambda _: None)),
    "positions begin too early": (
        "qwen2_vl",
        rollout,
        "different_prompts",
        with_prompts(positions=lambda last: last - 1),
    ),
    "positions do not go on": ("qwen2_vl", Rotations, "_made", angles_of_the_first),
    "rows do not move": ("qwen2_vl", OwnKeys, "move_row", lambda *_: None),
    "states do not move": (
        "qwen3_5",
        RolloutCache,
        "keep_rows",
        lambda self, _, rows, tokens: KEEP_ROWS(self, [], rows, []),
    ),
    "prompts do not move": ("qwen2_vl", OwnKeys, "move_prompt", lambda *_: None),
    "prompts are not seen": ("qwen2_vl", Step, "by_row", nothing_of_sums),
    "all have the first prompt": ("qwen2_vl", OwnKeys, "of_prompts", first_prompt),
    "noise goes by place": (
        "qwen2_vl",
        AsTransformers,
        "_of",
        lambda self, rows, steps: NOISE(self, [*range(len(rows))], steps),
    ),
    "noise has no end": ("qwen2_vl", AsTransformers, "finish", lambda self, steps: torch.rand(1)),
}
"""Name -> family of models, place, name there, what stands there."""
OF_DRAFTS = {
    "drafts see what follows": (StepMask, "own_bias", lambda *_: None),
    "drafts are taken as they are": (RollOut, "_kept", lambda self, sampled, draft: [*draft, sampled[-1]]),
    "drafts are taken but for their first": (RollOut, "_kept", lambda self, sampled, draft: sampled[:1] + draft[1:]),
}
