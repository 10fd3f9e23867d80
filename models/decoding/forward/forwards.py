"""Forwards of new tokens: as they come, or recorded once as a CUDA graph and replayed.

A forward of few tokens takes a GPU less time than Python takes to launch its kernels. A graph launches them all at
once, over and over, with other numbers at the same addresses; so all shapes are those of the whole rollout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from models.decoding.attention import Step, StepMask, rollout_attention
from models.decoding.cache import RolloutCache
from models.decoding.forward.layers import layers_of
from models.decoding.live_rows import LiveRows
from models.families.registry import family_of
from models.families.vision_hooks import vision_language_model


class Forwards:
    """Computes new tokens of the live rows.

    Args:
        model: with a language-model head.
        cache_name: what its forward calls its cache.
        prompt: tokens of a prompt, with its padding.
    """

    def __init__(self, model: nn.Module, cache: RolloutCache, cache_name: str, live: LiveRows, prompt: int):
        self.model, self.cache, self.cache_name, self.live, self.prompt = model, cache, cache_name, live, prompt
        combined = vision_language_model(model)
        self.family = family_of(combined.config)
        self.text = self.family.language_model(combined).config
        self.layers = layers_of(model, cache)

    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """(R, T, V), after each of R times T tokens.

        Args:
            rows: all that live, in their order; ids: their next tokens; starts: how many of theirs are in the cache.
        """
        step = self.live.step(starts, len(ids[0]))
        return self._computed(torch.tensor(ids, device=step.starts.device), step)

    def _computed(self, ids: torch.Tensor, step: Step) -> torch.Tensor:
        self.cache.begin(step)
        masks = self.family.step_masks(self.text, lambda window: StepMask(step, self.prompt, window))
        if self.layers is not None:
            return self.layers.logits(ids, self.live.first, step, masks)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": self.live.first + step.places,
            "attention_mask": masks,
            self.cache_name: self.cache,
        }
        if self.family.types_input is not None:
            inputs[self.family.types_input] = torch.zeros_like(ids)
        with rollout_attention(self.text):
            return self.model(**inputs, use_cache=True, return_dict=True).logits


class CudaGraph:
    """What a function computes on the current device, recorded: calls give what it would, from the same tensors.

    Args:
        compute: gives the same however often it is called, and never asks the device for a number.
    """

    def __init__(self, compute: Callable[[], torch.Tensor]):
        ahead = torch.cuda.Stream()
        ahead.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(ahead):  # what is made at a first use is made before
            compute()
        torch.cuda.current_stream().wait_stream(ahead)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._found = compute()

    def __call__(self) -> torch.Tensor:
        self._graph.replay()
        return self._found


@dataclass
class _Recorded:
    """Inputs at their addresses, and what is computed of them."""

    ids: torch.Tensor  # (R, T)
    starts: torch.Tensor  # (R,)
    replay: Callable[[], torch.Tensor] | None = None


class RecordedForwards(Forwards):
    """The same of rows that stay until all have ended; one recording for each number of tokens.

    Args:
        width: own tokens that a row may have.
    """

    def __init__(
        self, model: nn.Module, cache: RolloutCache, cache_name: str, live: LiveRows, prompt: int, width: int
    ):
        super().__init__(model, cache, cache_name, live, prompt)
        self.width = width
        self._recorded: dict[int, _Recorded] = {}

    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """(R, T, V), of those of the rows that have not ended."""
        device, tokens = self.live.positions.device, len(ids[0])
        place = {row: number for number, row in enumerate(self.live.rows)}
        if tokens not in self._recorded:
            zeros = partial(torch.zeros, dtype=torch.long, device=device)
            self._recorded[tokens] = _Recorded(zeros(len(place), tokens), zeros(len(place)))
        one = self._recorded[tokens]
        places = torch.tensor([place[row] for row in rows], device=device)
        one.ids[places] = torch.tensor(ids, device=device)
        one.starts[places] = torch.tensor(starts, device=device)
        if one.replay is None:
            step = self.live.step_of(one.starts, tokens, None, self.width)
            one.replay = CudaGraph(partial(self._computed, one.ids, step))
        return one.replay()[places]


def reason_not_recorded(model: nn.Module, cache: RolloutCache) -> str | None:
    """Why forwards of a model cannot be recorded; `None` if they can."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return f"a model on device '{device}', where there are no CUDA graphs"
    return reason_not_recorded_on_a_gpu(model, cache.has_states)


def reason_not_recorded_on_a_gpu(model: nn.Module, has_states: bool) -> str | None:
    """The same, of a model there; some layers have states instead of keys and values."""
    if has_states:
        return "layers whose states are made anew with each forward"
    config: Any = vision_language_model(model).config
    if getattr(config.get_text_config(), "num_experts", None):
        return "experts, whose shares of the tokens differ with each forward"
    return "quantised weights" if getattr(model, "quantization_method", None) is not None else None
