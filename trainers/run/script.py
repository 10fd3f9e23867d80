"""What every training script does around its trainer: readable errors, checked data, leaving a record."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate import PartialState

from data.cli.commands import ending, handling_terminate, leave_the_word, with_rank
from data.cli.locks import releasing_locks
from data.cli.secrets import hide_in_arguments
from trainers.report.publishing import ReportCallback, published_info, store_recipe
from trainers.report.record import RunInfo
from trainers.run.console import say, shorten_output
from trainers.run.machine import command_line
from trainers.run.origin import write_run
from trainers.run.resuming import RunStart, hold_output
from trainers.setup.checks import check_set_up
from trainers.setup.evaluation_rows import evaluation_rows, prompt_content
from trainers.setup.model import ModelInfo
from trainers.setup.recipes import DataArguments, Recipe, parse_recipe
from trainers.setup.task_data import TokenCounts, check_lengths, count_tokens, load_task_rows

GO_ON = "run the same command again; it resumes from the newest complete checkpoint, if there is one"


def _end(status: int, message: str) -> None:
    """Ends the process with a message, printed once where all processes end for the same reason."""
    sys.stderr.write(f"{with_rank(message)}\n")
    sys.stderr.flush()
    os._exit(status) if PartialState().num_processes > 1 else sys.exit(status)


def _take_leave() -> None:
    """Ends the processes together: one that just ends may abort while the others still listen to it.

    A run that has trained has left its process group already (`Accelerator.end_training`).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turns what a user can mend, or does (Ctrl-C, SIGTERM), into one message and an exit status; anything else is a
    traceback as usual."""
    try:
        with handling_terminate(), releasing_locks():
            yield
            _take_leave()
    except BaseException as error:
        found = ending(error, GO_ON)
        if found is None:
            if isinstance(error, Exception):  # perhaps no more than that the main process has ended
                leave_the_word()
            raise
        _end(*found)


def set_up(method: str, classes: tuple[type, ...], argv: Sequence[str] | None) -> tuple[Any, Any, Any, Recipe]:
    """What a recipe and the command line say, checked as far as it can be before data and model are read; from then
    on no other program writes to the output folder.

    Args:
        method: one of `trainers.setup.checks.METRICS`.
        classes: dataclasses of the script, the trainer and the model.

    Returns:
        One of each class, and the recipe.

    Raises:
        RecipeError: the first thing that is wrong.
    """
    script, args, model_args, recipe = parse_recipe(classes, argv)
    check_set_up(method, script, args, model_args)
    hold_output(script, args)
    return script, args, model_args, recipe


def load_checked_rows(
    arguments: DataArguments, args: Any, split: str, model: ModelInfo, source: str | None = None
) -> tuple[list[dict], TokenCounts | None]:
    """Rows of a split; on the main process every image is decoded and every prompt counted.

    Args:
        source: by default the recipe's `dataset_name`.

    Raises:
        RecordError: lists what is wrong with the data.
    """
    main = PartialState().is_main_process
    source = source or arguments.dataset_name
    rows = load_task_rows(arguments, split, check_files=main, source=source)
    if not main:
        return rows, None
    counts = count_tokens(rows, source, model.bounds, model.processor)
    check_lengths(counts, source, args.max_prompt_length, "max_prompt_length")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) if model.config else None
    check_lengths(counts, source, positions, "positions of the model")
    kind = "exact" if counts.exact else "upper bound"
    say(f"{split}: {len(rows)} rows; longest prompt {counts.longest} tokens ({kind}), {counts.images} visual at most")
    return rows, counts


def load_rows_and_held_out(
    arguments: DataArguments, args: Any, model: ModelInfo
) -> tuple[list[dict], list[dict] | None, TokenCounts | None]:
    """Checked rows to train on, those to evaluate on (`None` if the recipe asks for none), and counts of the former.

    Raises:
        RecordError: lists what is wrong with the data.
        RecipeError: the evaluation would be on rows that are trained on.
    """
    rows, counts = load_checked_rows(arguments, args, arguments.dataset_train_split, model)
    if args.eval_strategy == "no":
        return rows, None, counts

    def load(source: str, split: str) -> list[dict]:
        return load_checked_rows(arguments, args, split, model, source)[0]

    return *evaluation_rows(arguments, args.seed, rows, load, prompt_content), counts


def train_and_record(
    trainer: Any, start: RunStart, recipe: Recipe, dataset: str, base_model: str, rewards: Sequence[str] = ()
) -> None:
    """Trains, saves model, processor, recipe and report, and pushes them where the recipe says so.

    Args:
        dataset, base_model, rewards: what the report says of them (`RunInfo`).
    """
    args = trainer.args
    trainer.origin, trainer.found_whole = start.record, start.checkpoint
    hide_in_arguments(args)
    rows = {"training": trainer.train_dataset, "evaluation": trainer.eval_dataset}
    info = RunInfo(
        method=start.record["method"],
        command=command_line(),
        recipe=recipe.text,
        dataset=dataset,
        base_model=base_model,
        rewards=list(rewards),
        kind=trainer.report_kind,
        rows={name: len(found) for name, found in rows.items() if hasattr(found, "__len__")},
    )
    trainer.run_info = info = published_info(info)
    trainer.add_callback(ReportCallback(trainer))
    shorten_output(trainer)
    if trainer.is_world_process_zero():
        write_run(args.output_dir, start.record)
        store_recipe(args.output_dir, info.recipe)
    if args.save_only_model:
        say("note: save_only_model: checkpoints hold weights alone, and the run cannot be resumed if it is cut short")
    trainer.train(resume_from_checkpoint=start.checkpoint)
    trainer.save_model(args.output_dir, _internal_call=True)  # the push comes below, once, with everything
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(Path(args.output_dir) / "trainer_state.json"))
        trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        write_run(args.output_dir, start.record, finished=trainer.state.global_step)
    say(f"model saved to {args.output_dir}, report in {Path(args.output_dir) / 'report.html'}")
    if args.push_to_hub:
        trainer.push_to_hub(commit_message=f"{info.method} after {trainer.state.global_step} steps")
        say(f"pushed to {trainer.hub_model_id}")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def describe_rewards(specs: Sequence[Any], weights: Sequence[float] | None) -> list[str]:
    """A line for each reward: name, parameters, weight."""
    lines = []
    for number, spec in enumerate(specs):
        text = spec if isinstance(spec, str) else json.dumps(spec)
        lines.append(text if weights is None else f"{text} x {weights[number]}")
    return lines
