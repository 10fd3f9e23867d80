"""How trainers use shared prompts (models/shared_prefix/): what recipes say of it, and GRPO's log-probabilities."""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from models.shared_prefix.packing import Rows, different_images
from models.shared_prefix.prefill import shared_prefill
from models.shared_prefix.sharing import SharedPrefix, parse_mode


@dataclass
class SharingArguments:
    """What recipes of vision-language models say about shared prompts."""

    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "Compute each prompt and image once for all its continuations: auto, where that is exact; "
            "true, or else it is an error; false, never.",
            "type": str | bool,
        },
    )
    shared_prefix_check: bool = field(
        default=False, metadata={"help": "Compute the first batch both ways, and stop if they differ."}
    )

    def __post_init__(self):
        self.shared_prefix = parse_mode(self.shared_prefix)
        super().__post_init__()


class SharedLogProbs:
    """The part of a `trl.GRPOTrainer` that reads each prompt and image once: in rollouts for all completions, and for
    log-probabilities once a micro-batch.

    Old, current and reference log-probabilities all come from here. As many forward passes are made as in the parent,
    over the same rows, so that the processes of ZeRO-3 stay together whatever repeats on each of them.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sharing = SharedPrefix(self.args.shared_prefix, self.args.shared_prefix_check)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple:
        """The parent's; transformers reads each prompt once for all its completions."""
        with shared_prefill(self.model, on=not self.use_vllm and self.sharing.usable(self.model)):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As the parent's."""
        arguments = (model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss)
        size = batch_size or len(input_ids)
        plain = super()._get_per_token_logps_and_entropies

        def packed() -> tuple[torch.Tensor, torch.Tensor | None, None]:
            parts = []
            for start in range(0, len(input_ids), size):
                rows, images = _part(input_ids, attention_mask, others, slice(start, start + size))
                parts.append(self._of_rows(model, rows, logits_to_keep, compute_entropy, images))
            log_probs, entropies = (torch.cat(values) for values in zip(*parts, strict=True))
            return log_probs, entropies if compute_entropy else None, None

        return self.sharing.run(
            model,
            packed,
            plain=lambda: plain(*arguments, **others),
            reason=_reason_not_shared(others, compute_aux_loss),
            autocast=self.accelerator.autocast(),
        )

    def _of_rows(
        self, model: nn.Module, rows: dict[str, Any], width: int, entropies: bool, images: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies (the log-probabilities again, if not asked for), (rows, width) each."""
        packable = _as_rows(rows, width, images)
        with self.accelerator.autocast():
            batch = self.sharing.pack(model, packable, width)
            if batch is None:
                labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
                labels[:, :-width] = -100
                outputs = model(**rows, labels=labels, fused_lm_head=True)
                found = (outputs.log_probs, outputs.entropy) if entropies else (outputs.log_probs,) * 2
                return tuple(values[:, -width:] for values in found)
            outputs = model(**batch.packed.inputs, shift_labels=batch.labels, fused_lm_head=True)
        found = (outputs.log_probs, outputs.entropy) if entropies else (outputs.log_probs,) * 2
        return tuple(batch.unpack(values) for values in found)


_KNOWN = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids", "num_tiles")


def _reason_not_shared(others: dict[str, Any], compute_aux_loss: bool) -> str | None:
    unknown = [name for name, value in others.items() if value is not None and name not in _KNOWN]
    if unknown or compute_aux_loss:
        return f"batches with {', '.join(unknown) or 'a load-balancing loss'}"
    return None


def _part(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, others: dict[str, Any], rows: slice
) -> tuple[dict[str, Any], list[int]]:
    """Model inputs of some rows, and how many images each has."""
    part = {"input_ids": input_ids[rows], "attention_mask": attention_mask[rows]}
    if others.get("mm_token_type_ids") is not None:
        part["mm_token_type_ids"] = others["mm_token_type_ids"][rows]
    pixels, grids = others.get("pixel_values"), others.get("image_grid_thw")
    if pixels is None or len(pixels) == 0:
        return part, [0] * len(part["input_ids"])
    counts = list(others["num_images"])
    ends = [0, *accumulate(counts)]
    places = slice(ends[rows.start], ends[min(rows.stop, len(counts))])
    patches = [0, *accumulate(grids.prod(dim=1).tolist())]
    if places.stop > places.start:
        part["pixel_values"] = pixels[patches[places.start] : patches[places.stop]]
        part["image_grid_thw"] = grids[places]
    return part, counts[rows]


def _as_rows(part: dict[str, Any], width: int, counts: list[int]) -> Rows:
    """The same rows with each different image once."""
    numbers, pixels, grids = [], None, None
    if "pixel_values" in part:
        numbers, pixels, grids = different_images(part["pixel_values"], part["image_grid_thw"])
    remaining = iter(numbers)
    images = [[next(remaining) for _ in range(count)] for count in counts]
    prompts = part["attention_mask"][:, :-width].sum(dim=1).tolist()
    return Rows(
        part["input_ids"],
        part["attention_mask"],
        prompts,
        images,
        pixels,
        grids,
        part.get("mm_token_type_ids"),
    )
