"""How trainers use shared prompts (models/shared_prefix/): what recipes say of it, GRPO's log-probabilities, and what
SFT computes of the answers to a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from models.families.base import IMAGE_INPUTS, TOKEN_TYPES, ImageTensors
from models.families.registry import family_of, family_of_processor, known_family_of
from models.families.vision_hooks import has_vision_tower, vision_language_model
from models.shared_prefix.modes import parse_mode
from models.shared_prefix.packing import Rows
from models.shared_prefix.sharing import SharedPrefix
from trainers.mixins.rollouts.batch import with_rows_as_images


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
    """The part of a `trl.GRPOTrainer` that reads each prompt and image once a micro-batch, for log-probabilities.

    Old, current and reference log-probabilities all come from here. As many forward passes are made as in the parent,
    over the same rows, so that the processes of ZeRO-3 stay together whatever repeats on each of them.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sharing = SharedPrefix(self.args.shared_prefix, self.args.shared_prefix_check)

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
        found = family_of_processor(self.processing_class).found_inputs  # which TRL hands on and does not take
        others = with_rows_as_images({name: value for name, value in others.items() if name not in found})
        arguments = (input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss)
        size = batch_size or len(input_ids)
        plain = super()._get_per_token_logps_and_entropies

        def packed(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None, None]:
            images = images_of_rows(model, input_ids[:, :-logits_to_keep], others)
            tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
            tokens |= {name: others[name] for name in TOKEN_TYPES if others.get(name) is not None}
            parts = []
            for start in range(0, len(input_ids), size):
                part = slice(start, start + size)
                rows = {name: value[part] for name, value in tokens.items()}
                parts.append(self._of_rows(model, rows, logits_to_keep, compute_entropy, images[part]))
            log_probs, entropies = (torch.cat(values) for values in zip(*parts, strict=True))
            return log_probs, entropies if compute_entropy else None, None

        return self.sharing.run(
            model,
            packed,
            plain=lambda model: plain(model, *arguments, **others),
            reason=_reason_not_shared(others, compute_aux_loss),
        )

    def _of_rows(
        self,
        model: nn.Module,
        rows: dict[str, torch.Tensor],
        width: int,
        entropies: bool,
        images: Sequence[Sequence[ImageTensors]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies (the log-probabilities again, if not asked for), (rows, width) each.

        Args:
            rows: model inputs of tokens; images: of each row.
        """
        prompts = rows["attention_mask"][:, :-width].sum(dim=1).tolist()
        packable = Rows.of(rows["input_ids"], rows["attention_mask"], prompts, images)
        with self.accelerator.autocast():
            batch = self.sharing.pack(model, packable, width)
            if batch is None:
                labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
                labels[:, :-width] = -100
                family = known_family_of(vision_language_model(model).config)
                pixels = family.join([image for of_row in images for image in of_row])
                outputs = model(**rows, **pixels, labels=labels, fused_lm_head=True)
                found = (outputs.log_probs, outputs.entropy) if entropies else (outputs.log_probs,) * 2
                return tuple(values[:, -width:] for values in found)
            outputs = model(**batch.packed.inputs, shift_labels=batch.labels, fused_lm_head=True)
        found = (outputs.log_probs, outputs.entropy) if entropies else (outputs.log_probs,) * 2
        return tuple(batch.unpack(values) for values in found)


_KNOWN = (*IMAGE_INPUTS, *TOKEN_TYPES, "num_images", "num_tiles")


def _reason_not_shared(others: dict[str, Any], compute_aux_loss: bool) -> str | None:
    unknown = [name for name, value in others.items() if value is not None and name not in _KNOWN]
    if unknown or compute_aux_loss:
        return f"batches with {', '.join(unknown) or 'a load-balancing loss'}"
    return None


def images_of_rows(model: nn.Module, prompt_ids: torch.Tensor, others: dict[str, Any]) -> list[list[ImageTensors]]:
    """The images of each row of a batch.

    Args:
        others: what TRL's batches have beside tokens.
    """
    config = vision_language_model(model).config
    family = known_family_of(config)
    images = family.split(others)
    if not images:
        return [[] for _ in prompt_ids]
    tokens = (family.token_types(config, prompt_ids) == 1).sum(dim=1).tolist()
    numbers = family.images_of_rows(config, images, tokens, others.get("num_images"))
    return [[images[number] for number in of_row] for of_row in numbers]


# -- supervised learning ----------------------------------------------------------------------------------------------


class SharedAnswers:
    """The part of a `trl.SFTTrainer` that reads a prompt and its images once for all its answers in a batch.

    The parent's loss and figures are sums over the tokens that are learned, each of which has its place in the packed
    batch too. It makes as many forward passes as the parent.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        texts_only = self.args.shared_prefix == "auto" and not has_vision_tower(self.model)
        mode = "false" if texts_only else self.args.shared_prefix
        self.sharing = SharedPrefix(mode, self.args.shared_prefix_check)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *others: Any, **kwargs: Any) -> Any:
        """The parent's, which calls the model for a batch and is given this in its place."""
        if self.sharing.mode != "false" and "attention_mask" in inputs and "labels" in inputs:
            return super().compute_loss(partial(self._outputs, model), inputs, *others, **kwargs)
        return super().compute_loss(model, inputs, *others, **kwargs)

    def _outputs(self, model: nn.Module, **inputs: Any) -> Any:
        if not inputs.get("fused_lm_head"):  # it asks for logits
            return model(**inputs)
        labels = inputs["labels"]
        learned = labels[:, 1:] != -100
        rows = self._rows_with_equal_prompts(inputs)

        def packed(model: nn.Module) -> tuple[torch.Tensor, Any] | None:
            batch = None if rows is None else self.sharing.pack(model, rows, labels.shape[1] - 1)
            if batch is None or (batch.where[learned] < 0).any():  # a label at padding
                return None
            places = batch.where[learned]
            predicted = torch.full_like(batch.labels, -100)
            predicted.view(-1)[places] = labels[:, 1:][learned]
            outputs = model(**batch.packed.inputs, shift_labels=predicted, fused_lm_head=True)
            return outputs.log_probs.reshape(-1)[places], outputs

        def plain(model: nn.Module) -> tuple[torch.Tensor, Any]:
            outputs = model(**inputs)
            return outputs.log_probs[learned], outputs

        reason = self._reason_not_shared(inputs)
        return self.sharing.run(model, packed, plain, reason, repeats=rows is not None)[1]

    def _rows_with_equal_prompts(self, inputs: dict[str, Any]) -> Rows | None:
        """The batch, if it has rows with the same prompt and images."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        prompts = _tokens_before_labels(mask, inputs["labels"])
        if min(prompts) < 1 and self.sharing.mode == "auto":  # prompts are learned too
            return None
        nothing: list[list[int]] = [[] for _ in ids]
        if not _repeat(Rows(ids, mask, prompts, nothing)):
            return None
        combined = vision_language_model(self.model)
        if family_of(combined.config).reason_not_shared(combined) is not None:  # nor does it know its images
            return Rows(ids, mask, prompts, nothing)
        rows = Rows.of(ids, mask, prompts, images_of_rows(self.model, ids, with_rows_as_images(inputs)))
        return rows if _repeat(rows) else None

    def _reason_not_shared(self, inputs: dict[str, Any]) -> str | None:
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            return "sequences that are spread over processes"
        known = (*_OF_SFT, *family_of_processor(self.processing_class).found_inputs)
        others = {name: value for name, value in inputs.items() if name not in known}
        return _reason_not_shared(others, self.aux_loss_enabled)


_OF_SFT = ("input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head", "output_router_logits")


def _tokens_before_labels(mask: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """For each row, how many real tokens stand before the first that is learned; all of a row where none is."""
    behind = (labels != -100).cummax(dim=1).values  # (N, T)
    return ((mask != 0) & ~behind).sum(dim=1).tolist()


def _repeat(rows: Rows) -> bool:
    """Whether two rows have the same prompt and images."""
    keys = rows.prompt_keys()
    return len(set(keys)) < len(keys)
