"""Log-probabilities of sampled tokens: as the update computes them, and anew from logits under other assumptions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from trl.trainer.utils import split_pixel_values_by_grid

from models.families.base import IMAGE_INPUTS, TOKEN_TYPES, KnownFamily
from models.families.registry import family_of
from models.families.vision_hooks import has_vision_tower, vision_language_model
from models.generation import evaluating
from trainers.diagnosis.causes import Cause
from trainers.diagnosis.prompts import image_pad
from trainers.diagnosis.rollout import Observed, Sampling
from trainers.mixins.rollouts.batch import Batch
from trainers.mixins.shared_prompts import images_of_rows

IMAGE_FIELDS = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes", "image_position_ids",
                "spatial_shapes", "num_images", "num_tiles", "mm_token_type_ids", "token_type_ids")  # fmt: skip
"""What a batch hands on to the model beside tokens."""


def of_update(trainer: Any, observed: Observed) -> list[torch.Tensor]:
    """What the update computes now, in the mode that the model is in: (tokens,) of each completion."""
    batch = observed.batch
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    others = {name: batch[name] for name in IMAGE_FIELDS if name in batch}
    with torch.no_grad():
        found, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            ids,
            mask,
            batch["completion_ids"].size(1),
            batch_size=trainer.args.per_device_train_batch_size,
            **others,
        )
    return cut(found, observed)


def cut(values: torch.Tensor, observed: Observed) -> list[torch.Tensor]:
    """The values of each row's sampled tokens, without padding, float32 on the CPU; none of a row that is left out."""
    counted = set(observed.counted())
    lengths = [len(one.completion_ids) * (row in counted) for row, one in enumerate(observed.sampled)]
    return [of_row[:length].float().cpu() for of_row, length in zip(values, lengths, strict=True)]


# -- from logits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A forward pass that differs from the update's in one thing.

    Attributes:
        name: what differs.
        cause: that it would explain; `None` of the update's own.
        model: opens the model that runs; by default the update's.
        images: whether it sees them.
        shift: how many places later the sampler says the log-probability of a token.
    """

    name: str
    cause: Cause | None = None
    model: Callable[[], AbstractContextManager[nn.Module]] | None = None
    images: bool = True
    shift: int = 0

    @property
    def runs(self) -> str:
        """Which forward pass it needs; a shift needs none of its own."""
        return self.name if self.shift == 0 else UPDATE.name


UPDATE = Variant("the update")


def row_logits(trainer: Any, observed: Observed, rows: Sequence[int], variant: Variant) -> list[torch.Tensor]:
    """Logits that each sampled token of some rows would be drawn from: (tokens, vocabulary), float32."""
    opened = nullcontext(trainer.model) if variant.model is None else variant.model()
    with opened as model, evaluating(model), torch.no_grad(), trainer.accelerator.autocast():
        return [_one_row(trainer, observed, row, variant, model) for row in rows]


def _one_row(trainer: Any, observed: Observed, row: int, variant: Variant, model: nn.Module) -> torch.Tensor:
    inputs = row_inputs(trainer, observed, row, variant.images)
    tokens = len(observed.sampled[row].completion_ids)
    start = inputs["input_ids"].size(1) - tokens - 1
    device = next(model.parameters()).device
    logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits[0].float()
    return logits[start : start + tokens]


def row_inputs(trainer: Any, observed: Observed, row: int, images: bool = True) -> dict[str, torch.Tensor]:
    """What the model gets of one row of the batch, without padding; or the same without its images."""
    batch = observed.batch
    width = batch["prompt_ids"].size(1)
    keep = batch["prompt_mask"][row].bool()
    completion = torch.tensor(observed.sampled[row].completion_ids, device=keep.device)
    ids = torch.cat([batch["prompt_ids"][row][keep], completion])
    inputs = {"input_ids": ids}
    for name in TOKEN_TYPES:
        if name in batch:
            inputs[name] = torch.cat([batch[name][row, :width][keep], torch.zeros_like(completion)])
    if not images:
        seen = inputs["input_ids"] != image_pad(trainer.processing_class)
        inputs = {name: value[seen] for name, value in inputs.items()}
    inputs = {name: value[None] for name, value in inputs.items()}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs | (_images_of_row(trainer, batch, row) if images else {})


def _images_of_row(trainer: Any, batch: Batch, row: int) -> dict[str, torch.Tensor]:
    """What the model gets of the images of a row."""
    if not has_vision_tower(trainer.model):
        return {}
    family = family_of(vision_language_model(trainer.model).config)
    if isinstance(family, KnownFamily):
        return family.join(images_of_rows(trainer.model, batch["prompt_ids"], batch)[row])
    of_rows = split_pixel_values_by_grid(batch)
    found = {name: of_rows[name][row] for name in IMAGE_INPUTS if of_rows.get(name) is not None}
    return {name: value for name, value in found.items() if len(value)}


# -- sampling ---------------------------------------------------------------------------------------------------------


def drawn(
    logits: Sequence[torch.Tensor], observed: Observed, rows: Sequence[int], sampling: Sampling
) -> list[torch.Tensor]:
    """Log-probabilities of the sampled tokens under what is drawn from logits: (tokens,) each, -inf of what is cut."""
    found = []
    for scores, row in zip(logits, rows, strict=True):
        one = observed.sampled[row]
        scores = warped(scores, one.prompt_ids or observed.prompt_ids(row), one.completion_ids, sampling)
        tokens = torch.tensor(one.completion_ids, device=scores.device)[:, None]
        found.append(torch.log_softmax(scores, dim=-1).gather(1, tokens)[:, 0].cpu())
    return found


def warped(scores: torch.Tensor, prompt: Sequence[int], completion: Sequence[int], how: Sampling) -> torch.Tensor:
    """Logits of a whole completion (tokens, vocabulary) as `generate` changes them before it draws."""
    none = torch.zeros(0, dtype=torch.long, device=scores.device)
    if how.repetition_penalty != 1.0:
        penalise = RepetitionPenaltyLogitsProcessor(how.repetition_penalty)
        before = torch.tensor([*prompt, *completion], device=scores.device)
        scores = torch.cat(
            [
                penalise(before[None, : len(prompt) + step], scores[step : step + 1].clone())
                for step in range(len(completion))
            ]
        )
    if how.suppressed:
        scores = scores.index_fill(1, torch.tensor(how.suppressed, device=scores.device), -torch.inf)
    scores = scores / how.temperature
    if how.top_k:
        scores = TopKLogitsWarper(top_k=how.top_k)(none, scores)
    if how.top_p < 1.0:
        scores = TopPLogitsWarper(top_p=how.top_p)(none, scores)
    if how.min_p:
        scores = MinPLogitsWarper(min_p=how.min_p)(none, scores)
    return scores


# -- other models -----------------------------------------------------------------------------------------------------


@contextmanager
def in_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The model with its weights rounded to a precision, and rounded activations; afterwards as it was."""
    kept = {name: value.detach().clone() for name, value in model.named_parameters()}
    try:
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(value.to(dtype))
        with torch.autocast(next(model.parameters()).device.type, dtype=dtype):
            yield model
    finally:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(kept[name])


@contextmanager
def without_adapters(model: Any) -> Iterator[nn.Module]:
    """The model under its adapters."""
    with model.disable_adapter():
        yield model


@contextmanager
def other_weights(model: nn.Module, folder: str) -> Iterator[nn.Module]:
    """The model of a folder, beside the update's."""
    from models.families.loading import load_vlm

    first = next(model.parameters())
    yield load_vlm(folder, device=first.device, dtype=str(first.dtype).removeprefix("torch."))[0]


def as_drawn_by_update(sampling: Sampling, temperature: float) -> Sampling:
    """How the update thinks that tokens are drawn: at its temperature, and never those that are suppressed."""
    return replace(Sampling(), temperature=temperature, suppressed=sampling.suppressed)
