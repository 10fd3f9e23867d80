"""Supervised warm start: a model learns to write the right answers of a data set.

    vlm-posttrain sft --config agent_selection_sft
    accelerate launch trainers/sft.py --config recipes/agent_selection_sft.yaml

Runs TRL's SFTTrainer. The answers are those of the records (data/tasks.py), or a column `completion`. With
`policy: selector`, an example selector learns the best beams of stored groups (docs/rce_and_offline_grpo.md).
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "SFT", "DataArguments", "SFTConfig", "ModelConfig")

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import trl
from datasets import Dataset, IterableDataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import ModelConfig

from data.io.records import RecordError
from data.rows.chat import completion_length
from models.families.loading import image_reader, without_router_losses
from trainers.groups.arguments import GroupArguments
from trainers.groups.policies import GroupLogProbs
from trainers.losses import best_weights, groups_without_contrast, weighted_cross_entropy
from trainers.mixins.checkpoints import CompleteCheckpoints, metrics_state, restored_metrics
from trainers.mixins.enough_rows import TrainsSomething, check_enough_rows
from trainers.mixins.image_bounds import PromptArguments, processor_of
from trainers.mixins.non_finite import FiniteTraining
from trainers.mixins.rollouts.order import OrderOfEpoch, WholeGroups
from trainers.mixins.shared_prompts import SharedAnswers, SharingArguments
from trainers.mixins.vision_tower import TrainsVisionTower, VisionTowerArguments
from trainers.rce import GroupConfig, RCETrainer
from trainers.report.fixed_samples import FixedSamples, demonstration_samples, held_out_rows
from trainers.report.publishing import PublishedRun
from trainers.report.samples import SampleLog, Source
from trainers.run.resuming import begin_run
from trainers.run.script import load_rows_and_held_out, readable_errors, set_up, train_and_record
from trainers.setup.default_config import CheckedSettings, config_or_default
from trainers.setup.memory import base_load, say_estimate
from trainers.setup.model import class_of_its_revision, policy_arguments
from trainers.setup.model_settings import checked_model
from trainers.setup.recipes import DataArguments, recipe_value
from trainers.setup.task_data import (
    check_columns,
    check_no_limit,
    given_rows,
    is_of_a_task,
    library_dataset,
    rows_behind,
    rows_by_prompt,
    to_dataset,
)


@dataclass
class SFTConfig(CheckedSettings, PromptArguments, VisionTowerArguments, SharingArguments, trl.SFTConfig):
    """`trl.SFTConfig`; texts are never cut, because half an image cannot be read: `max_prompt_length` checks them."""

    max_length: int | None = field(default=None, metadata={"help": "Must stay null; see max_prompt_length."})
    keep_prompts_together: bool = field(
        default=False,
        metadata={"help": "Shuffle prompts instead of rows: the answers to a prompt follow each other, and share it."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.keep_prompts_together and self.train_sampling_strategy != "random":
            raise ValueError(
                f"keep_prompts_together shuffles prompts: expected train_sampling_strategy random, found "
                f"{self.train_sampling_strategy}"
            )
        if self.max_length is not None:
            found = f"found {self.max_length}; max_prompt_length refuses longer prompts"
            raise ValueError(f"max_length cuts images in two: expected null (None), {found}")


class SFTTrainer(
    TrainsSomething,
    FiniteTraining,
    CompleteCheckpoints,
    PublishedRun,
    SharedAnswers,
    TrainsVisionTower,
    trl.SFTTrainer,
):
    """`trl.SFTTrainer` that reads each prompt once for its answers in a batch, whose batches may lack images on some
    processes, with the vision tower frozen if asked.

    The arguments stand in the order of `trl.SFTTrainer`; the others of its arguments may follow.

    Args:
        model: a vision-language model, or one of texts, or its folder or Hub id.
        args: by default those of `SFTConfig`; a `trl.SFTConfig` gets the defaults of the additions.
        train_dataset, eval_dataset: for a vision-language model, rows of a task (data/tasks.py): a prompt and its
            `completion`, or what says the right answer, and images; every image is decoded before training. Other
            data sets are TRL's.
        processing_class: by default the processor of the model, with the bounds of `args`.

    Raises:
        TypeError: another configuration.
        ValueError: settings that contradict the processor or the data.
        RecordError: rows that cannot be used, or prompts longer than `args.max_prompt_length`.
    """

    _name = "SFT"

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: trl.SFTConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        *others: Any,
        **kwargs: Any,
    ):
        args = config_or_default(args, SFTConfig, model, "SFT")
        processing_class = processor_of(model, args, processing_class)
        self.task_rows: dict[str, list[dict]] = {}
        """Name of a data set -> its rows, of those that have rows of a task."""

        def prepared(dataset: Any, name: str) -> Any:
            if isinstance(dataset, Mapping):
                return {key: prepared(one, f"{name} {key}") for key, one in dataset.items()}
            if not (isinstance(processing_class, ProcessorMixin) and is_of_a_task(dataset)):
                if kwargs.get("formatting_func") is None:
                    check_columns(dataset, name, (*OF_THE_LIBRARY, args.dataset_text_field))
                check_no_limit(dataset, args.max_prompt_length)
                seen = library_dataset(dataset, name, processing_class)
                if seen is not dataset:
                    args.remove_unused_columns = False  # pictures may stand in any of them
                return seen
            if kwargs.get("formatting_func") is not None:
                raise ValueError(f"formatting_func: the rows of {name} say what prompt and answer are; leave it out")
            args.remove_unused_columns = False  # rows are looked up when they are needed
            rows = given_rows(dataset, name, processing_class, args.max_prompt_length)
            self.task_rows[name] = with_completions(rows, name)
            return to_dataset(self.task_rows[name], image_reader(processing_class), COLUMNS)

        train_dataset, eval_dataset = prepared(train_dataset, "train_dataset"), prepared(eval_dataset, "eval_dataset")
        if args.keep_prompts_together and rows_behind(train_dataset) is None:
            raise ValueError("keep_prompts_together: expected train_dataset to have rows of a task (docs/recipes.md)")
        with class_of_its_revision(model, args):
            super().__init__(
                model, args, data_collator, train_dataset, eval_dataset, processing_class, *others, **kwargs
            )
        without_router_losses(self.model)  # the parent asks for them itself

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """The parent's, or one that shuffles prompts instead of rows."""
        if not self.args.keep_prompts_together:
            return super()._get_train_sampler(train_dataset)
        groups = rows_by_prompt(rows_behind(self.train_dataset) or [])
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return OrderOfEpoch(WholeGroups(groups), seed, lambda: int(self.state.epoch or 0))

    def fixed_samples(self) -> FixedSamples | None:
        """The same few rows at every sampled step, and a training row; `None` for other rows than those of a task."""
        train = self.task_rows.get("train_dataset")
        if train is None:
            return None
        held_out = next((rows for name, rows in self.task_rows.items() if name != "train_dataset"), None)
        source: Source = "training data" if held_out is None else "held out"
        bounds = image_reader(self.processing_class)
        return demonstration_samples(self, self.kept_samples, held_out or train, source, train, bounds)

    def extra_state(self) -> dict[str, Any]:
        return {"tokens": self._total_train_tokens, "metrics": metrics_state(self._metrics["train"])}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._total_train_tokens = state["tokens"]
        self._metrics["train"] = restored_metrics(state["metrics"])


COLUMNS = ("prompt", "completion", "images")
OF_THE_LIBRARY = ("messages", "conversations", "input_ids")
"""Columns of the forms of rows that `trl.SFTTrainer` reads, beside a text or a prompt."""


def with_completions(rows: list[dict], source: str) -> list[dict]:
    """Rows of prompt, completion and images."""
    prepared = []
    for row in rows:
        answer = row.get("gold") if row.get("completion") is None else row["completion"]
        if answer is None:
            raise RecordError(
                [f"{source}: row {row['id']!r}: field 'completion': missing, and the task has no answer"]
            )
        if isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}]
        prepared.append({"prompt": row["prompt"], "completion": answer, "images": row["images"]})
    return prepared


# -- selectors --------------------------------------------------------------------------------------------------------


@dataclass
class SelectorSFTConfig(GroupConfig):
    """Settings of a selector's warm start."""

    best_beams: int = field(
        default=1, metadata={"help": "Selector: learn so many best candidates of each group, all alike."}
    )


class SelectorSFTTrainer(RCETrainer):
    """`RCETrainer` whose weights are equal for the best candidates of a group and 0 for the others: cross-entropy with
    the examples of the best pointers as labels, each within its query's own pool."""

    config_class = SelectorSFTConfig

    def group_losses(self, scored: GroupLogProbs, index: torch.Tensor) -> torch.Tensor:
        cross_entropy = scored.of_candidates(scored.cross_entropy, self.policy.mean_over_steps)  # (B, G)
        rewards, valid = self.groups.rows(index, cross_entropy.shape[1])
        if self.model.training:
            self.note(frac_reward_zero_std=groups_without_contrast(rewards, valid).float())
        return weighted_cross_entropy(cross_entropy, best_weights(rewards, valid, self.args.best_beams))

    def preferences(self, index: torch.Tensor, size: int) -> tuple[str, torch.Tensor]:
        return "weight", best_weights(*self.groups.rows(index, size), self.args.best_beams)


def train_selector(argv: list[str]) -> None:
    """The warm start of an example selector."""
    from trainers.groups.run import train_on_groups

    script, args, model_args, recipe = set_up("selector SFT", (GroupArguments, SelectorSFTConfig, ModelConfig), argv)
    train_on_groups(SelectorSFTTrainer, "SFT", script, args, model_args, recipe)


# -- the script -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with readable_errors():
        if recipe_value(argv, "policy") == "selector":
            train_selector(argv)
            return
        script, args, model_args, recipe = set_up("SFT", (DataArguments, SFTConfig, ModelConfig), argv)

        # Data
        model = checked_model(script, args, model_args)
        rows, held_out, counts = load_rows_and_held_out(script, args, model)
        check_enough_rows(len(rows), args, script.dataset_name)
        train_rows = with_completions(rows, script.dataset_name)
        eval_rows = (
            None if held_out is None else with_completions(held_out, script.eval_dataset_name or script.dataset_name)
        )
        if counts is not None:
            longest = max(completion_length(row["completion"]) for row in train_rows)
            load = replace(
                base_load(script, args, model_args, counts), completion_tokens=longest // 3, generated_rows=0
            )
            say_estimate(model.config, load)
        start = begin_run("SFT", script, args, model_args, {"train": train_rows, "evaluation": eval_rows})
        if start is None:
            return

        # Trainer
        args.remove_unused_columns = False  # rows are looked up when they are needed
        trainer = SFTTrainer(
            args=args,
            train_dataset=to_dataset(train_rows, model.bounds, COLUMNS),
            eval_dataset=to_dataset(eval_rows, model.bounds, COLUMNS) if eval_rows is not None else None,
            processing_class=model.processor,
            **policy_arguments(args, model_args),
        )

        shown, source = held_out_rows(script, train_rows, eval_rows)
        if source == "held out" and eval_rows is None:
            shown = with_completions(shown, script.dataset_name)
        trainer.add_callback(
            demonstration_samples(trainer, SampleLog(args.output_dir), shown, source, train_rows, model.bounds)
        )

        # Train, save, report
        train_and_record(trainer, start, recipe, script.dataset_name, model_args.model_name_or_path)


if __name__ == "__main__":
    main()
