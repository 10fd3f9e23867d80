"""The checks of recipes that sample nothing: what SFT, RCE and offline GRPO learn of prompts and given answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from trl import ModelConfig

from models.families.base import IMAGE_INPUTS
from trainers.diagnosis import causes
from trainers.diagnosis.completions import check_closing, check_vision_tokens, end_ids
from trainers.diagnosis.findings import Finding, wrong
from trainers.diagnosis.images import check_images
from trainers.diagnosis.methods.set_up import isolated_set_up
from trainers.diagnosis.prompts import (
    behind_prompt,
    check_bos,
    check_generation_prompt,
    check_round_trip,
    compare_prompts,
    expected_ids,
)
from trainers.diagnosis.rollout import Observed, Sampled, config_of
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import load_stored_groups
from trainers.groups.policies import prepare_groups
from trainers.groups.vlm_policy import VLMPolicy
from trainers.setup.model import policy_arguments
from trainers.setup.model_settings import checked_model
from trainers.setup.recipes import DataArguments, RecipeError, recipe_value
from trainers.setup.task_data import load_task_rows, to_dataset


@dataclass
class Learned:
    """What an update gets of some rows.

    Attributes:
        rows: with `prompt`, `images`, opened, and `gold`, the answer: one for each row of the batch.
        ids: (rows, tokens) of prompt and answer.
        there: (rows, tokens), what is no padding.
        counted: (rows, tokens), what the loss counts.
        images: model inputs that are of images, of all rows, and `num_images`.
        config: of the module that takes pixels and tokens; `None` of a model that takes texts alone.
        ends: ids of tokens that end a completion.
    """

    rows: list[dict]
    ids: torch.Tensor
    there: torch.Tensor
    counted: torch.Tensor
    images: dict[str, Any]
    config: Any
    ends: set[int]

    def split(self, row: int) -> tuple[list[int], list[int]]:
        """Tokens before the first one that the loss counts, and the counted ones."""
        there = self.there[row].bool()
        ids, counted = self.ids[row][there], self.counted[row][there].bool()
        first = int(counted.int().argmax()) if counted.any() else len(ids)
        return ids[:first].tolist(), ids[counted].tolist()

    def as_observed(self) -> Observed:
        """The same as checks of rollouts see it."""
        prompts, answers = zip(*(self.split(row) for row in range(len(self.rows))), strict=True)
        batch = {
            "prompt_ids": pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True),
            "prompt_mask": pad_sequence([torch.ones(len(ids)) for ids in prompts], batch_first=True),
        }
        return Observed(self.rows, [Sampled(list(ids)) for ids in answers], batch | self.images, config=self.config)


def check_learned(learned: Learned, processor: Any) -> Iterator[Finding]:
    """Every check of prompts and answers that are given."""
    labels = check_labels(learned, processor)
    yield labels
    yield check_round_trip(learned.rows, processor)
    if labels.cause is causes.LABELS:  # then it is not known where prompts end
        return
    observed = learned.as_observed()
    rows = range(len(learned.rows))
    yield check_bos(observed, processor)
    yield compare_prompts(
        "prompt tokens of update and processor",
        [observed.prompt_ids(row) for row in rows],
        [expected_ids(processor, row) for row in learned.rows],
        processor,
    )
    yield check_generation_prompt(observed, processor)
    yield from check_images(observed, processor, has_sampler=False)
    yield check_closing(learned.rows[0], processor, learned.ends)
    yield check_vision_tokens(observed, processor)


def check_labels(learned: Learned, processor: Any) -> Finding:
    """The loss counts the answer and the end token, and nothing of the prompt."""
    check, limit = "tokens that the loss counts", "the answer and its end token"
    for number, row in enumerate(learned.rows):
        before, counted = learned.split(number)
        answer = processor.tokenizer(answer_text(processor, row), add_special_tokens=False)["input_ids"]
        if len(counted) > len(answer) + 2:  # the end token, and a line's end behind it
            found = f"{len(counted)} tokens of an answer with {len(answer)}"
            return wrong(check, found, limit, causes.LABELS)
        if not learned.ends.intersection(counted[-2:]):
            ends = " or ".join(map(str, processor.tokenizer.convert_ids_to_tokens(sorted(learned.ends))))
            return wrong(check, f"no {ends} at the end", limit, causes.NO_END)
        if counted[: len(answer)] != list(answer):
            return wrong(check, f"other tokens than the answer's in row {row['id']!r}", limit, causes.MASK)
        if not before:
            return wrong(check, f"row {row['id']!r} has no prompt", limit, causes.LABELS)
    return Finding(check, f"the answer and its end token in {len(learned.rows)} rows", limit)


def answer_text(processor: Any, row: dict) -> str:
    """The answer as the template writes it, with white space before it."""
    written = behind_prompt(processor, row, row["gold"])
    return (written and written[0]) or row["gold"]


# -- the methods ------------------------------------------------------------------------------------------------------


def _check_policy(policy: str) -> None:
    if policy != "vlm":
        raise RecipeError(f"policy: {policy}: the doctor looks at prompts and answers; expected vlm")


def diagnose_sft(argv: Sequence[str], limit: int) -> Iterator[Finding]:
    """Everything that is found of a recipe of SFT.

    Args:
        argv: a command line of `trainers/sft.py`.
        limit: rows that are looked at.

    Raises:
        RecipeError: a selector, which reads no prompts.
    """
    from trainers.sft import COLUMNS, SFTConfig, SFTTrainer, with_completions

    _check_policy(recipe_value(argv, "policy") or "vlm")
    with isolated_set_up("SFT", (DataArguments, SFTConfig, ModelConfig), argv) as (script, args, model_args, _):
        model = checked_model(script, args, model_args)
        rows = load_task_rows(script, script.dataset_train_split, check_files=False)[:limit]
        answered = with_completions(rows, script.dataset_name)
        args.remove_unused_columns = False
        data = to_dataset(answered, model.bounds, COLUMNS)
        policy = policy_arguments(args, model_args)
        trainer = SFTTrainer(args=args, train_dataset=data, processing_class=model.processor, **policy)
        batch = trainer.data_collator([trainer.train_dataset[number] for number in range(len(rows))])
        opened = [
            {**row, "images": data[number].get("images") or [], "gold": answered[number]["completion"][-1]["content"]}
            for number, row in enumerate(rows)
        ]
        images = {name: batch[name] for name in IMAGE_INPUTS if name in batch}
        learned = Learned(
            opened,
            batch["input_ids"],
            batch["attention_mask"],
            batch["labels"] != -100,
            images | {"num_images": [len(row["images"]) for row in opened]},
            config_of(trainer.model),
            end_ids(model_args.model_name_or_path, model.processor, model_args.model_revision),
        )
        yield from check_learned(learned, model.processor)


def diagnose_groups(method: str, config: type, argv: Sequence[str], limit: int) -> Iterator[Finding]:
    """Everything that is found of a recipe of RCE or offline GRPO.

    Args:
        method: one of `trainers.setup.checks.METRICS`.
        config: its configuration.
        argv: a command line of its script.
        limit: groups that are looked at.

    Raises:
        RecipeError: a selector, which reads no prompts.
    """
    with isolated_set_up(method, (GroupArguments, config, ModelConfig), argv) as (script, args, model_args, _):
        _check_policy(script.policy)
        model = checked_model(script, args, model_args)
        policy = VLMPolicy(model.processor, model.bounds)
        groups = load_stored_groups(script, script.dataset_train_split, by_length=False)[:limit]
        batch = policy.collate(prepare_groups(policy, groups))
        opened = [
            {
                "id": group.id,
                "prompt": group.columns["prompt"],
                "images": [model.bounds.open(image) for image in group.columns.get("images") or []],
                "gold": candidate.completion,
            }
            for group in groups
            for candidate in group.candidates
        ]
        images: dict[str, Any] = {"num_images": [len(row["images"]) for row in opened]}
        if model.config is not None:
            images |= policy.image_inputs(model.config, batch)
        width = batch["completion_mask"].size(1)
        counted = torch.zeros_like(batch["attention_mask"])
        counted[:, -width:] = batch["completion_mask"]
        ends = end_ids(model_args.model_name_or_path, model.processor, model_args.model_revision)
        learned = Learned(opened, batch["input_ids"], batch["attention_mask"], counted, images, model.config, ends)
        yield from check_learned(learned, model.processor)
