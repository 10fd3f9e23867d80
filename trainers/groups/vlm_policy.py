"""A vision-language model that learns from stored groups: candidates are completions, each prompt computed once."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from data.io.pixel_bounds import ImageReader
from data.io.records import RecordError
from models.families.base import TOKEN_TYPES, ImageTensors, KnownFamily
from models.families.loading import space_before_answers
from models.families.registry import family_of_processor, known_family_of
from models.families.vision_hooks import vision_language_model
from models.generation import prepare_inputs
from models.shared_prefix.packing import Rows, continuation_log_probs, token_log_probs
from models.shared_prefix.sharing import SharedPrefix
from trainers.groups.data import StoredGroup
from trainers.groups.policies import Batch, GroupLogProbs, Kind
from trainers.setup.checks import check_policy_settings
from trainers.setup.model import load_to_train
from trainers.setup.task_data import check_lengths, count_tokens

_OF_TOKENS = ("input_ids", "attention_mask", *TOKEN_TYPES)


class VLMPolicy:
    """A vision-language model: a candidate is a completion, a step one of its tokens; the last step ends the turn.

    A candidate counts by the mean over its tokens, so that long completions weigh what short ones do.

    Where it is not known which of the processor's tensors are of which image, each row's prompt goes through it with
    its own images, and the model gets all of its tensors as they are.

    Args:
        processor: of the model.
        bounds: how images are resized.

    Attributes:
        family: that says which tensors are of which image; `None` where that is not known.
    """

    kind: ClassVar[Kind] = "vlm"
    mean_over_steps: ClassVar[bool] = True

    def __init__(self, processor: Any, bounds: ImageReader):
        self.processor = processor
        family = family_of_processor(processor)
        self.family = family if isinstance(family, KnownFamily) else None
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
        """Rows of prompt and completion; a prompt's images go through the processor once, where that is possible.

        Padding stands left of the prompt and right of the completion. `slot` says which (group, candidate) a row is.
        Images stand in the batch with `image_counts`, how many each prompt has; or as `images`, what the processor
        made of those of all rows.
        """
        sizes = [len(item["completions"]) for item in items]
        group = torch.repeat_interleave(torch.arange(len(items)), torch.tensor(sizes))  # (N,)
        read = items if self.family is not None else [items[number] for number in group.tolist()]
        images = [[self.bounds.open(image) for image in item["images"]] for item in read]
        prompts = dict(prepare_inputs(self.processor, [item["prompt"] for item in read], images))
        of_tokens = {name: prompts.pop(name) for name in _OF_TOKENS if name in prompts}
        if self.family is not None:
            of_tokens = {name: value[group] for name, value in of_tokens.items()}
        completions = [ids for item in items for ids in item["completions"]]
        longest = max(len(ids) for ids in completions)
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in completions])  # (N, C)
        exists = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in completions])
        behind = {"input_ids": ids, "attention_mask": exists.long()}
        batch = {
            "index": torch.tensor([item["index"] for item in items]),
            "completion_mask": exists,
            "slot": torch.cat([torch.arange(size) + row * max(sizes) for row, size in enumerate(sizes)]),
            "shape": torch.tensor([len(items), max(sizes)]),
        }
        for name, value in of_tokens.items():
            batch[name] = torch.cat([value, behind.get(name, torch.zeros_like(ids))], dim=1)
        if self.family is None:
            return batch | {"images": prompts}
        counts = torch.tensor([len(shown) for shown in images])
        return batch | self.family.of_images(prompts) | {"image_counts": counts}

    def images_of_rows(self, config: Any, batch: Batch) -> list[list[ImageTensors]]:
        """The images that each row of a batch sees.

        Args:
            config: of the module that takes pixels and tokens, of a known family.
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

    def image_inputs(self, config: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """What the model takes of the images of all rows, each with its own."""
        if self.family is None:
            return dict(batch["images"])
        return self.family.join([image for of_row in self.images_of_rows(config, batch) for image in of_row])

    def group_log_probs(self, model: nn.Module, batch: Batch) -> GroupLogProbs:
        exists = batch["completion_mask"]  # (N, C)
        steps = exists.shape[1]
        log_probs = self.sharing.run(
            model,
            lambda module: self._shared_log_probs(module, batch),
            lambda module: self._plain_log_probs(module, batch),
            None if self.family is not None else f"images as {type(self.processor).__name__} lays them out",
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
        inputs = {name: batch[name] for name in _OF_TOKENS if name in batch}
        inputs |= self.image_inputs(vision_language_model(model).config, batch)
        steps = batch["completion_mask"].shape[1]
        logits = model(**inputs, logits_to_keep=steps + 1, use_cache=False).logits[:, -steps - 1 : -1]
        tokens = batch["input_ids"][:, -steps:]
        log_probs = torch.stack([token_log_probs(*row)[0] for row in zip(logits, tokens, strict=True)])
        return log_probs * batch["completion_mask"]
