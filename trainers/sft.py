"""Supervised warm start: a model learns to write the right answers of a data set.

    accelerate launch trainers/sft.py --config recipes/agent_selection_sft.yaml

Runs TRL's SFTTrainer. The answers are those of the records (data/tasks.py), or a column `completion`.
"""

if __name__ == "__main__":  # --help answers before the heavy imports
    from trainers.scripts import answer_help

    answer_help(__file__)

from dataclasses import dataclass, field, replace
from typing import Any

import trl
from transformers import PreTrainedModel
from trl import ModelConfig

from data.records import RecordError
from models.adapters import adapter_values, keep_adapters_in_float32
from models.vision_hooks import install_vision_hooks, vision_tower
from trainers.checkpoints import CompleteCheckpoints, checkpoint_to_resume
from trainers.console import say
from trainers.memory_estimate import base_load, say_estimate
from trainers.model_at_hand import inspect_model, model_init_kwargs, policy_arguments
from trainers.publishing import PublishedRun
from trainers.recipes import DataArguments, parse_recipe
from trainers.report import RunInfo
from trainers.runs import command_line, load_checked_rows, readable_errors, train_and_record
from trainers.task_data import to_dataset


@dataclass
class SFTConfig(trl.SFTConfig):
    """`trl.SFTConfig`; texts are never cut, because half an image cannot be read: `max_prompt_length` checks them."""

    max_length: int | None = field(default=None, metadata={"help": "Must stay null; see max_prompt_length."})
    freeze_vision_tower: bool = field(default=False, metadata={"help": "Train everything but the vision tower."})

    def __post_init__(self):
        super().__post_init__()
        if self.max_length is not None:
            raise ValueError("max_length cuts images in two: leave it null and set max_prompt_length")


class SFTTrainer(CompleteCheckpoints, PublishedRun, trl.SFTTrainer):
    """`trl.SFTTrainer` whose batches may lack images on some processes, with the vision tower frozen if asked."""

    _name = "SFT"

    def __init__(self, model: str | PreTrainedModel, args: SFTConfig, **kwargs: Any):
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # the hooks below use the vision tower on every process
        trained_before = adapter_values(model)
        super().__init__(model, args=args, **kwargs)
        keep_adapters_in_float32(self.model, trained_before)
        install_vision_hooks(self.model, self.accelerator.num_processes > 1)
        if args.freeze_vision_tower:
            vision_tower(self.model).requires_grad_(False)


def _with_completions(rows: list[dict], source: str) -> list[dict]:
    """Rows of prompt, completion and images."""
    prepared = []
    for row in rows:
        answer = row.get("completion", row.get("gold"))
        if answer is None:
            raise RecordError(
                [f"{source}: row {row['id']!r}: field 'completion': missing, and the task has no answer"]
            )
        if isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}]
        prepared.append({"prompt": row["prompt"], "completion": answer, "images": row["images"]})
    return prepared


def main(argv: list[str] | None = None) -> None:
    with readable_errors():
        script, args, model_args, recipe = parse_recipe((DataArguments, SFTConfig, ModelConfig), argv)

        # Data
        model = inspect_model(model_args.model_name_or_path, script, required=not script.validate_only)
        rows, counts = load_checked_rows(script, script.dataset_train_split, model)
        train_rows = _with_completions(rows, script.dataset_name)
        eval_rows = None
        if args.eval_strategy != "no":
            rows = load_checked_rows(script, script.dataset_test_split, model)[0]
            eval_rows = _with_completions(rows, script.dataset_name)
        if counts is not None:
            longest = max(len(row["completion"][-1]["content"].encode()) for row in train_rows)
            load = replace(
                base_load(script, args, model_args, counts), completion_tokens=longest // 3, generated_rows=0
            )
            say_estimate(model.config, load)
        if script.validate_only:
            say("valid")
            return
        resume_from = checkpoint_to_resume(args, script.resume)

        # Trainer
        columns = ("prompt", "completion", "images")
        args.model_init_kwargs = model_init_kwargs(args, model_args)
        args.remove_unused_columns = False  # rows are looked up when they are needed
        trainer = SFTTrainer(
            args=args,
            train_dataset=to_dataset(train_rows, model.bounds, columns),
            eval_dataset=to_dataset(eval_rows, model.bounds, columns) if eval_rows is not None else None,
            processing_class=model.processor,
            **policy_arguments(args, model_args),
        )

        # Train, save, report
        info = RunInfo(
            method="SFT",
            command=command_line(__file__),
            recipe=recipe.text,
            dataset=script.dataset_name,
            base_model=model_args.model_name_or_path,
        )
        train_and_record(trainer, info, recipe, resume_from)


if __name__ == "__main__":
    main()
