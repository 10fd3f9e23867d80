"""New tokens by the parts of a language model alone, without what transformers has around them.

A model's forward passes wrappers that choose defaults, outputs and masks, and small operations that one can do. For a
few tokens of a small model that takes longer than the computation, and on a GPU longer than its kernels. So language
models that are built like Llama's are computed here from their projections, with the same results.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.modeling import get_mixed_precision_context_manager
from torch import nn
from torch.nn import functional

from models.decoding.attention import Step, StepMask, attend
from models.decoding.cache import ROOM, RolloutCache
from models.families.registry import family_of
from models.families.vision_hooks import changes_new_tokens, vision_language_model

LIKE_LLAMA = (
    "LlamaModel",
    "Qwen2Model",
    "Qwen3Model",
    "Qwen2VLTextModel",
    "Qwen2_5_VLTextModel",
    "Qwen3VLTextModel",
)
"""Language models whose layers are: norm, attention with rotated queries and keys, sum, norm, MLP, sum."""
BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on the longest row."""
PLACES_AND_AXES = 4
"""Positions of tokens in their text, and on three axes, as Qwen's models hand them to their language model."""
Compute = Callable[[torch.Tensor], torch.Tensor]


def layers_of(model: nn.Module, cache: RolloutCache) -> "Layers | None":
    """The parts of a model; `None` of one that is built otherwise, or does more in its forward than is known."""
    combined = vision_language_model(model)
    text: Any = family_of(combined.config).language_model(combined)
    if type(text).__name__ not in LIKE_LLAMA or not type(text).__module__.startswith("transformers."):
        return None
    if text.rotary_emb.rope_type in BY_LENGTH:
        return None
    passed = [*_around(model, text), *text.layers, *(layer.self_attn for layer in text.layers)]
    if _in_mixed_precision(model):
        passed.remove(model)
    passed += filter(_is_norm, text.modules())
    return None if any(map(changes_new_tokens, passed)) else Layers(model, text, cache)


def _around(model: nn.Module, inner: nn.Module) -> list[nn.Module]:
    """The modules from a model to one within it, with both."""
    path = next(name for name, module in model.named_modules() if module is inner).split(".")
    return [model, *(model.get_submodule(".".join(path[:depth])) for depth in range(1, len(path) + 1))]


def _in_mixed_precision(model: nn.Module) -> bool:
    """Whether accelerate has the forward of a model cast automatically."""
    return {"forward", "_original_forward"} <= vars(model).keys()


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _normalised(module: nn.Module) -> Compute:
    """What a norm does, in one operation where that is the same: float32 is not rounded in between."""
    if not _is_norm(module):
        return module

    def compute(hidden: torch.Tensor) -> torch.Tensor:
        weight = module.weight
        if hidden.dtype == weight.dtype == torch.float32:
            return functional.rms_norm(hidden, weight.shape, weight, module.variance_epsilon)
        return module(hidden)

    return compute


@dataclass(frozen=True)
class Rotation:
    """The angles by which queries and keys are turned.

    Attributes:
        cos: (R, T, 1, D); sin: likewise, with the sign of each half.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def turn(self, states: torch.Tensor) -> torch.Tensor:
        """(R, T, H, D)."""
        return states * self.cos + states.roll(states.shape[-1] // 2, -1) * self.sin


class Rotations:
    """The angles of all own tokens of the live rows, made at once when rows come or go.

    Args:
        rotary: transformers' module.
    """

    def __init__(self, rotary: nn.Module):
        self.rotary = rotary
        self._first: torch.Tensor | None = None
        self._all: Rotation

    def at(self, hidden: torch.Tensor, first: torch.Tensor, step: Step) -> Rotation:
        """Those of a step.

        Args:
            hidden: of the type and on the device of the angles.
            first: (..., R, 1), positions of each row's first own token, the same object while rows stay.
        """
        if first is not self._first or step.width > self._all.cos.shape[1]:
            self._first, self._all = first, self._made(hidden, first, -(-step.width // ROOM) * ROOM)
        if step.at is not None:
            return Rotation(*(table[:, step.at : step.at + 1] for table in (self._all.cos, self._all.sin)))
        rows = torch.arange(step.rows, device=first.device).unsqueeze(1)
        return Rotation(*(table[rows, step.places] for table in (self._all.cos, self._all.sin)))

    def _made(self, hidden: torch.Tensor, first: torch.Tensor, width: int) -> Rotation:
        positions = first + torch.arange(width, device=first.device)
        if positions.ndim == 3 and len(positions) == PLACES_AND_AXES:
            positions = positions[1:]
        cos, sin = self.rotary(hidden, positions)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return Rotation(cos.unsqueeze(2), sin.unsqueeze(2))


class Layer:
    """One layer.

    Args:
        layer: transformers' module.
        number: of it, as the cache counts.
    """

    def __init__(self, layer: nn.Module, number: int, cache: RolloutCache):
        attention: Any = layer.self_attn
        self.first_norm, self.second_norm = map(_normalised, (layer.input_layernorm, layer.post_attention_layernorm))
        self.query, self.key, self.value = attention.q_proj, attention.k_proj, attention.v_proj
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.query_norm, self.key_norm = (None if norm is None else _normalised(norm) for norm in norms)
        self.output, self.mlp = attention.o_proj, layer.mlp
        self.size, self.scale = attention.head_dim, attention.scaling
        self.number, self.cache = number, cache

    def __call__(self, hidden: torch.Tensor, rotation: Rotation, mask: StepMask) -> torch.Tensor:
        """(R, T, width of the model)."""
        hidden = hidden + self._attended(self.first_norm(hidden), rotation, mask)
        return hidden + self.mlp(self.second_norm(hidden))

    def _attended(self, states: torch.Tensor, rotation: Rotation, mask: StepMask) -> torch.Tensor:
        rows, tokens, _ = states.shape
        query, key, value = (
            project(states).view(rows, tokens, -1, self.size) for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        turned = rotation.turn(torch.cat([query, key], dim=2)).transpose(1, 2)
        heads = query.shape[2]
        keys, values = self.cache.layers[self.number].update(turned[:, heads:], value.transpose(1, 2))
        found, _ = attend(self.output, turned[:, :heads], keys, values, mask, self.scale)
        return self.output(found.reshape(rows, tokens, -1))


class Layers:
    """A model, by the parts of its language model.

    Args:
        model: with a language-model head.
        text: its language model, of `LIKE_LLAMA`.
    """

    def __init__(self, model: nn.Module, text: Any, cache: RolloutCache):
        self.mixed_precision = _in_mixed_precision(model)
        self.embed, self.head = text.embed_tokens, model.get_output_embeddings()
        self.rotations = Rotations(text.rotary_emb)
        self.norm = _normalised(text.norm)
        self.layers = [Layer(layer, number, cache) for number, layer in enumerate(text.layers)]
        self.types = getattr(text.config, "layer_types", None)

    def logits(self, ids: torch.Tensor, first: torch.Tensor, step: Step, masks: Any) -> torch.Tensor:
        """(R, T, V).

        Args:
            ids: (R, T); first: see `Rotations`; masks: of `StepMask`, as the model's forward takes them.
        """
        if not self.mixed_precision:
            return self._logits(ids, first, step, masks)
        casts: AbstractContextManager = get_mixed_precision_context_manager(native_amp=True)
        with casts:
            return self._logits(ids, first, step, masks).float()

    def _logits(self, ids: torch.Tensor, first: torch.Tensor, step: Step, masks: Any) -> torch.Tensor:
        hidden = self.embed(ids)
        rotation = self.rotations.at(hidden, first, step)
        for number, layer in enumerate(self.layers):
            mask = masks[self.types[number]] if isinstance(masks, dict) else masks
            hidden = layer(hidden, rotation, mask)
        return self.head(self.norm(hidden))
