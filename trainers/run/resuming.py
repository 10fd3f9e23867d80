"""Whether a command starts a run, goes on with one, or finds it finished: decided once, for all processes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data.cli.locks import hold
from data.errors import UserError
from models.run_folders import COMPLETE_FILE, RUN_FILE, checkpoint_folders, damage, read_complete
from trainers.run.console import say
from trainers.run.origin import changes, read_run, run_origin
from trainers.run.output_folder import own_folder
from trainers.setup.checks import check_checkpoint
from trainers.setup.recipes import RecipeError

OF_THE_OPTIMIZER = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("optim", "optim_args", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
)
"""Settings that an optimizer and its schedule keep, and DeepSpeed takes from the checkpoint alone."""
TRUE, FALSE, CHANGED = "true", "false", "changed"
"""Values of the recipe's `resume`."""


@dataclass(frozen=True)
class RunStart:
    """How a run begins.

    Attributes:
        record: see `trainers.run.origin`.
        checkpoint: to go on from, or `None`.
    """

    record: Mapping[str, Any]
    checkpoint: str | None


def hold_output(script: Any, args: Any) -> None:
    """Keeps other programs from the output folder, before data and model are read.

    Where a run has a folder of its own, its name is known only to `begin_run`, which then holds it.

    Raises:
        RecipeError: on every process alike: another program writes to it.
    """
    if not script.validate_only and not getattr(script, "own_folder", False):
        _for_all(lambda: hold(args.output_dir))


def begin_run(
    method: str, script: Any, args: Any, model_args: Any, rows: Mapping[str, Sequence[Any] | None]
) -> RunStart | None:
    """What the run starts from, or `None` if it has finished already or the recipe is only to be validated. A run that
    is to have a folder of its own gets it as `args.output_dir`.

    Args:
        method: name of the trainer.
        script, args, model_args: what the recipe was parsed into.
        rows: data by name, as it was loaded; `None` where there is none.

    Raises:
        RecipeError: on every process alike: another program writes to the output folder; the folder or the checkpoint
            belongs to another run, or to the same one with other settings, data, models or versions; a checkpoint is
            damaged and no older one is whole.
    """

    if script.validate_only:
        say("valid")
        return None
    named = {name: part for name, part in rows.items() if part is not None}

    def record() -> dict[str, Any]:
        return run_origin(method, (script, args, model_args), named)

    def decide() -> RunStart | None:
        hold(args.output_dir)
        return _decide(record(), args, script.resume)

    if getattr(script, "own_folder", False):
        args.output_dir = own_folder(args.output_dir, script.resume != FALSE, record)
    return _for_all(decide)


def _for_all(decide: Callable[[], Any]) -> Any:
    """What `decide` returns or raises on the main process, on every process."""
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome = [decide(), None]
        except UserError as error:
            outcome = [None, error]
    found, problem = broadcast_object_list(outcome)
    if problem is not None:
        raise problem
    return found


def _decide(record: Mapping[str, Any], args: Any, resume: str) -> RunStart | None:
    output_dir = Path(args.output_dir)
    stored = read_run(output_dir)
    finished = None if stored is None else stored.get("finished")
    if args.resume_from_checkpoint is None and resume == FALSE:
        _check_unused(output_dir, finished)
        return RunStart(record, None)
    if finished is not None:
        differences = changes(stored, record)
        if not differences or _is_done(finished, args, resume):
            _say_finished(output_dir, finished, args)
            return None
        if resume != CHANGED:
            raise RecipeError(_what_changed(f"{output_dir} holds a finished run", differences))
    named = args.resume_from_checkpoint
    chosen = _newest_whole(output_dir) if named is None else _named(Path(named))
    if chosen is None:
        if finished is not None:
            raise RecipeError(f"output_dir: {output_dir} holds a finished run without checkpoints to go on from")
        return RunStart(record, None)
    _check_same_run(chosen, record, resume)
    say(f"resuming from {chosen}")
    return RunStart(record, str(chosen))


def _is_done(finished: int, args: Any, resume: str) -> bool:
    """Whether a finished run has all the steps of a recipe that was changed on purpose."""
    return resume == CHANGED and 0 < args.max_steps <= finished


def _say_finished(output_dir: Path, finished: int, args: Any) -> None:
    say(f"already finished: the run in {output_dir} ended after step {finished}; nothing was changed")
    if args.push_to_hub:
        name = args.hub_model_id or output_dir.name
        say(f"to push its model again: hf upload {name} {output_dir} --exclude 'checkpoint-*'")


def _check_unused(output_dir: Path, finished: int | None) -> None:
    if checkpoint_folders(output_dir) or finished is not None:
        found = "checkpoints of an earlier run" if finished is None else "a finished run"
        raise RecipeError(
            f"output_dir: {output_dir} holds {found} and resume is false; choose another folder or remove it"
        )


# -- the checkpoint ---------------------------------------------------------------------------------------------------


def whole_checkpoint(asked: str | Path | bool | None, output_dir: str | Path) -> str | None:
    """The checkpoint that `Trainer.train(resume_from_checkpoint=asked)` is to go on from, or `None` for none.

    Args:
        asked: a folder; or `True` for the newest whole one of `output_dir`.

    Raises:
        RecipeError: on every process alike: there is none, or it is damaged, or it holds weights alone.
    """
    if asked is None or asked is False:
        return None

    def find() -> str:
        found = _newest_whole(Path(output_dir)) if asked is True else _named(Path(asked))
        if found is None:
            raise RecipeError(f"resume_from_checkpoint: no checkpoint in '{output_dir}'")
        return str(found)

    return _for_all(find)


def _named(folder: Path) -> Path:
    """The checkpoint that the recipe names.

    Raises:
        RecipeError: it does not exist, is not whole, or holds weights alone.
    """
    check_checkpoint(folder)
    if not (folder / COMPLETE_FILE).is_file():
        raise RecipeError(
            f"resume_from_checkpoint: {folder} has no {COMPLETE_FILE}: it was cut short, or another program wrote it"
        )
    problem = damage(folder)
    if problem is not None:
        raise RecipeError(f"resume_from_checkpoint: {folder} is damaged: {problem}")
    _check_resumable(folder)
    return folder


def _newest_whole(output_dir: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written, after saying which ones are not.

    Raises:
        RecipeError: some are damaged and none is whole; or it holds weights alone.
    """
    damaged, incomplete = [], []
    for folder in reversed(checkpoint_folders(output_dir)):
        if not (folder / COMPLETE_FILE).is_file():
            incomplete.append(folder.name)
            say(f"ignoring {folder}: it was cut short while it was written")
            continue
        problem = damage(folder)
        if problem is None:
            _check_resumable(folder)
            return folder
        damaged.append(f"{folder}: {problem}")
        say(f"ignoring {folder}, which is damaged: {problem}")
    if damaged:
        listed = "\n".join(f"  {line}" for line in damaged)
        raise RecipeError(
            f"output_dir: no checkpoint in {output_dir} is whole:\n{listed}\n"
            "To start anew, remove them or choose another output_dir."
        )
    if incomplete:
        say(f"starting anew: no checkpoint in {output_dir} is complete")
    return None


def _check_resumable(folder: Path) -> None:
    if not read_complete(folder).get("resumable", True):
        raise RecipeError(
            f"save_only_model: {folder} holds weights without optimizer, schedule and random state, and no run can go "
            "on from it; name it as model_name_or_path of a new run with another output_dir"
        )


def _check_same_run(checkpoint: Path, record: Mapping[str, Any], resume: str) -> None:
    """Raises RecipeError, naming what differs, where a checkpoint is of a run that started from something else."""
    stored = read_run(checkpoint)
    if stored is None:
        raise RecipeError(f"{checkpoint} has no {RUN_FILE}: no training script of this version wrote it")
    differences = changes(stored, record)
    if differences and resume != CHANGED:
        raise RecipeError(_what_changed(f"{checkpoint} is of a run", differences))
    if stored["method"] != record["method"]:
        raise RecipeError(f"{checkpoint} is of the trainer {stored['method']}, expected {record['method']}")
    if record["distribution"] == "DEEPSPEED" and stored["processes"] != record["processes"]:
        raise RecipeError(
            f"{checkpoint} was written by {stored['processes']} processes; DeepSpeed can only go on with as many, "
            f"found {record['processes']}"
        )
    kept = [key for key in OF_THE_OPTIMIZER if key in differences]
    if record["distribution"] == "DEEPSPEED" and kept:
        raise RecipeError(
            f"{checkpoint}: DeepSpeed restores its optimizer as it was, so that another {kept[0]} "
            f"({differences[kept[0]]}) would have no effect; start a new run from its weights"
        )
    for key, difference in differences.items():
        say(f"changed: {key}: {difference}")


def _what_changed(where: str, differences: Mapping[str, str]) -> str:
    listed = "\n".join(f"  {key}: {difference}" for key, difference in differences.items())
    return (
        f"{where} that started from something else:\n{listed}\n"
        "To go on with what is given now, set resume: changed. To start anew, choose another output_dir."
    )
