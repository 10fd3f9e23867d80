"""A vision-language model that learns from stored groups: candidates are completions, each prompt computed once."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from data.io.pixel_bounds import ImageReader
from data.io.records import RecordError
from models.errors import ModelError
from models.families.base import TOKEN_TYPES, ImageTensors, KnownFamily
from models.families.loading import space_before_answers
from models.families.registry import FAMILIES, family_of_processor, known_family_of
from models.families.vision_hooks import vision_language_model
from models.generation import prepare_inputs
from models.shared_prefix.packing import Rows, continuation_log_probs, token_log_probs
from models.shared_prefix.sharing import SharedPrefix
from trainers.groups.data import StoredGroup
from trainers.groups.policies import Batch, GroupLogProbs, Kind
from trainers.setup.checks import check_policy_settings
from trainers.setup.model import load_to_train
from trainers.setup.task_data import check_lengths, count_tokens


class VLMPolicy:
    """A vision-language model: a candidate is a completion, a step one of its tokens; the last step ends the turn.

    A candidate counts by the mean over its tokens, so that long completions weigh what short ones do.

    Args:
        processor: of the model.
        bounds: how images are resized.

    Raises:
        ModelError: a processor of a family that is not known, so that nobody knows which images are which row's.
    """

    kind: ClassVar[Kind] = "vlm"
    mean_over_steps: ClassVar[bool] = True

    def __init__(self, processor: Any, bounds: ImageReader):
        self.family = family_of_processor(processor)
        if not isinstance(self.family, KnownFamily):
            known = ", ".join(name for family in FAMILIES for name in family.model_types)
            raise ModelError(
                f"{type(processor).__name__}: models of this family cannot learn from stored groups, those of type "
                f"{known} can"
            )
        self.processor = processor
        self.bounds = bounds
        self.sharing = SharedPrefix()  # as the settings say, once they are known

    def check_settings(self, args: Any) -> None:
        check_policy_settings(self.kind, args)

    def check_groups(self, groups: Sequence[StoredGroup], name: str, args: Any) -> None:
        """Raises `RecordError` if a prompt has more tokens than `args.max_prompt_length`."""
        if args.max_prompt_length is not None:
            rows = [{"id": group.id, **group.columns} for group in groups]
            counts = count_tokens(rows, name, self.bounds, self.processor)
            check_lengths(counts, name, args.max_prompt_length, "max_prompt_length")

    def compares_lengths(self, model: nn.Module) -> bool:
        return True

    def load(
        self, name: str, args: Any, options: Mapping[str, Any], quantization: Any = None, adapters: Any = None
    ) -> nn.Module:
        return load_to_train(name, args, options, quantization, adapters)

    def set_up(self, model: nn.Module, args: Any) -> None:
        self.sharing = SharedPrefix(args.shared_prefix, args.shared_prefix_check)

    def prepare(self, group: StoredGroup) -> dict[str, Any]:
        """The conversation, its images (opened when they are needed), and the tokens of each completion."""
        tokenizer, space = self.processor.tokenizer, space_before_answers(self.processor)
        texts = [candidate.completion for candidate in group.candidates]
        written = [text if text.startswith(space) else space + text for text in texts]  # as the template does
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in written]
        reserved = set(tokenizer.all_special_ids)
        problems = [
            f"{group.where}: field 'completion': the text contains the special token "
            f"{tokenizer.convert_ids_to_tokens(token)!r} (found {text!r:.80})"
            for text, row in zip(texts, ids, strict=True)
            for token in sorted(reserved.intersection(row))
        ]
        if problems:
            raise RecordError(problems)
        return {
            "prompt": group.columns["prompt"],
            "images": group.columns.get("images") or [],
            "completions": [[*row, tokenizer.eos_token_id] for row in ids],
        }

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch:
        """Rows of prompt and completion; a prompt's images go through the processor once.

        Padding stands left of the prompt and right of the completion. `slot` says which (group, candidate) a row is,
        `image_counts` how many images each prompt has.
        """
        images = [[self.bounds.open(image) for image in item["images"]] for item in items]
        prompts = prepare_inputs(self.processor, [item["prompt"] for item in items], images)
        sizes = [len(item["completions"]) for item in items]
        group = torch.repeat_interleave(torch.arange(len(items)), torch.tensor(sizes))  # (N,)
        completions = [ids for item in items for ids in item["completions"]]
        longest = max(len(ids) for ids in completions)
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in completions])  # (N, C)
        exists = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in completions])
        batch = {
            "index": torch.tensor([item["index"] for item in items]),
            "input_ids": torch.cat([prompts["input_ids"][group], ids], dim=1),
            "attention_mask": torch.cat([prompts["attention_mask"][group], exists.long()], dim=1),
            "completion_mask": exists,
            "slot": torch.cat([torch.arange(size) + row * max(sizes) for row, size in enumerate(sizes)]),
            "shape": torch.tensor([len(items), max(sizes)]),
        }
        for name in TOKEN_TYPES:
            if name in prompts:
                batch[name] = torch.cat([prompts[name][group], torch.zeros_like(ids)], dim=1)
        return (
            batch | self.family.of_images(prompts) | {"image_counts": torch.tensor([len(shown) for shown in images])}
        )

    def images_of_rows(self, config: Any, batch: Batch) -> list[list[ImageTensors]]:
        """The images that each row of a batch sees.

        Args:
            config: of the module that takes pixels and tokens.
        """
        family = known_family_of(config)
        images = family.split(batch)
        prompts = batch["slot"] // batch["shape"][1]  # (N,)
        if not images:
            return [[] for _ in prompts]
        first = [prompts.tolist().index(number) for number in range(int(batch["shape"][0]))]
        types = family.token_types(config, batch["input_ids"][first, : -batch["completion_mask"].shape[1]])
        tokens = (types == 1).sum(dim=1).tolist()
        of_prompts = family.images_of_rows(config, images, tokens, batch["image_counts"].tolist())
        return [[images[number] for number in of_prompts[prompt]] for prompt in prompts.tolist()]

    def group_log_probs(self, model: nn.Module, batch: Batch) -> GroupLogProbs:
        exists = batch["completion_mask"]  # (N, C)
        steps = exists.shape[1]
        log_probs = self.sharing.run(
            model,
            lambda module: self._shared_log_probs(module, batch),
            lambda module: self._plain_log_probs(module, batch),
        )
        groups, size = batch["shape"].tolist()
        mask = exists.new_zeros(groups * size, steps).index_copy(0, batch["slot"], exists).view(groups, size, steps)
        placed = log_probs.new_zeros(groups * size, steps).index_copy(0, batch["slot"], log_probs)
        placed = placed.view(groups, size, steps)
        return GroupLogProbs(placed, mask, -placed)

    def _shared_log_probs(self, model: nn.Module, batch: Batch) -> torch.Tensor | None:
        """(N, C), each prompt once, 0 where a row has no token; `None` where that is not exact or saves nothing."""
        steps = batch["completion_mask"].shape[1]
        images = self.images_of_rows(vision_language_model(model).config, batch)
        prompts = batch["attention_mask"][:, :-steps].sum(dim=1).tolist()
        rows = Rows.of(batch["input_ids"], batch["attention_mask"], prompts, images)
        packed = self.sharing.pack(model, rows, steps)
        return None if packed is None else continuation_log_probs(model, packed)[0]

    def _plain_log_probs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """(N, C), each row with its own prompt, 0 where a row has no token."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", *TOKEN_TYPES) if name in batch}
        config = vision_language_model(model).config
        images = self.images_of_rows(config, batch)
        inputs |= known_family_of(config).join([image for of_row in images for image in of_row])
        steps = batch["completion_mask"].shape[1]
        logits = model(**inputs, logits_to_keep=steps + 1, use_cache=False).logits[:, -steps - 1 : -1]
        tokens = batch["input_ids"][:, -steps:]
        log_probs = torch.stack([token_log_probs(*row)[0] for row in zip(logits, tokens, strict=True)])
        return log_probs * batch["completion_mask"]
