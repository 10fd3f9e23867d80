"""What a run leaves beside its weights, and pushes with them: recipe, report, figures, model card."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from data.cli.secrets import hide_in_arguments, recipe_without_secrets, without_secrets
from data.errors import UserError
from data.io.records import atomic_write
from trainers.report.page import write_card, write_report
from trainers.report.record import RunInfo, RunRecord, SessionClock, kept_model, load_record
from trainers.report.samples import SampleLog
from trainers.run.console import warn
from trainers.run.machine import command_line
from trainers.run.origin import changed_settings

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"


class PublishError(UserError, RuntimeError):
    """The Hub cannot be reached, or refuses."""


def published_info(info: RunInfo) -> RunInfo:
    """The same without secrets."""
    named = {name: without_secrets(getattr(info, name)) for name in ("command", "dataset", "base_model", "rewards")}
    return replace(info, recipe=recipe_without_secrets(info.recipe), **named)


class PublishedRun:
    """Trainer mix-in: writes the run's own model card instead of TRL's, pushes a checkpoint after its report has been
    written, and says in one message why a push failed.

    Args:
        report: `train` leaves report, samples, figures and model card in the output folder, as the scripts do.

    Attributes:
        run_info: set by the training script, or by `report`; without it, TRL's card is written.
        samples: where groups are stored for the report.
        report_kind: of `RunInfo`.
    """

    run_info: RunInfo | None = None
    samples: SampleLog | None = None
    report_kind = "vlm"
    _unpushed: str | None = None  # folder of a checkpoint whose push was put off

    def __init__(self, *args: Any, report: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._report = report

    # -- what subclasses add ------------------------------------------------------------------------------------------

    def fixed_samples(self) -> TrainerCallback | None:
        """What asks the model for answers to the same few prompts now and then; `None` where none are shown."""
        return None

    def described_rewards(self) -> list[str]:
        """A line for each reward, if the method has any."""
        return []

    def report_callbacks(self) -> list[TrainerCallback]:
        """What gathers something for the report, beside the curves."""
        fixed = self.fixed_samples()
        return [] if fixed is None else [fixed]

    @property
    def kept_samples(self) -> SampleLog:
        """Where groups are stored: as it was given, or in the output folder."""
        return SampleLog(self.args.output_dir) if self.samples is None else self.samples

    # -- a report from Python -----------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's; with `report`, what it leaves is written too."""
        if not self._report:
            return super().train(*args, **kwargs)
        if self.run_info is None:
            self._begin_report()
        output = super().train(*args, **kwargs)
        self.save_state()
        self.create_model_card()
        return output

    def _begin_report(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        sets = {"training": self.train_dataset, "evaluation": self.eval_dataset}
        settings = yaml.safe_dump(changed_settings(self.args))
        info = RunInfo(
            method=type(self).__name__.removesuffix("Trainer"),
            command=command_line(),
            recipe=f"# Settings of a program, which has the model and the data.\n{settings}",
            dataset="given in the program",
            base_model=model.config.name_or_path or f"a new {type(model).__name__}",
            rewards=self.described_rewards(),
            kind=self.report_kind,
            rows={name: len(rows) for name, rows in sets.items() if hasattr(rows, "__len__")},
        )
        self.run_info = published_info(info)
        self.samples = self.kept_samples
        for callback in (*self.report_callbacks(), ReportCallback(self)):
            self.add_callback(callback)
        if self.is_world_process_zero():
            store_recipe(self.args.output_dir, self.run_info.recipe)

    # -- the card -----------------------------------------------------------------------------------------------------

    def create_model_card(self, model_name: str | None = None, *args, **kwargs) -> None:
        if self.run_info is None:
            super().create_model_card(model_name, *args, **kwargs)
        elif self.is_world_process_zero():
            self.run_record.name = model_name or Path(self.args.output_dir).name
            write_card(self.args.output_dir, self.run_record, self.state.log_history)

    @cached_property
    def run_record(self) -> RunRecord:
        """What is known of the run so far."""
        loads_from = self.hub_model_id if self.args.push_to_hub else self.args.output_dir
        return RunRecord(self.run_info, name=Path(self.args.output_dir).name, loads_from=loads_from)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The parent's, which stores the arguments beside the weights: without secrets."""
        hide_in_arguments(self.args)
        super()._save(output_dir, state_dict)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Puts the push off until `push_checkpoint`: the report is yet to be written, and a file that changes while it
        is uploaded makes the push fail."""
        if self.run_info is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._unpushed = checkpoint_folder

    def push_checkpoint(self) -> None:
        """Starts the push that was put off, if there is one."""
        folder, self._unpushed = self._unpushed, None
        if folder is not None:
            earlier = self._push_jobs()
            super()._push_from_checkpoint(folder)
            for job in self._push_jobs() - earlier:
                job.add_done_callback(_warn_of_failure)

    def is_pushing(self) -> bool:
        """Whether files of the output folder are being uploaded."""
        return not all(job.done() for job in self._push_jobs())

    def _push_jobs(self) -> set[Future]:
        pushing = getattr(self, "push_in_progress", None)
        return set() if pushing is None else set(pushing.jobs)

    def init_hf_repo(self, *args, **kwargs) -> None:
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # the Hub's client raises many kinds
            name = self.args.hub_model_id or Path(self.args.output_dir).name
            raise PublishError(f"push_to_hub: '{name}' cannot be created on the Hub: {error}") from error

    def push_to_hub(self, *args, **kwargs) -> Any:
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception as error:  # as above
            folder, name = self.args.output_dir, self.hub_model_id
            again = f"hf upload {name} {folder} --exclude 'checkpoint-*'"
            raise PublishError(
                f"push_to_hub: {error}\nNothing is lost: the run is saved in {folder}. To push it later: {again}"
            ) from error


def _warn_of_failure(job: Future) -> None:
    if not job.cancelled() and job.exception() is not None:
        logger.warning("a push while training failed: %s", job.exception())


def store_recipe(output_dir: str | Path, text: str) -> None:
    """Writes `recipe.yaml`."""
    with atomic_write(Path(output_dir) / RECIPE_FILE) as file:
        file.write(text)


class ReportCallback(TrainerCallback):
    """Writes the report whenever a checkpoint is saved, and at the end, and lets the checkpoint be pushed after that.
    A report may fail, but never ends a run: what is missing is said once.

    Args:
        trainer: with its `run_info`.
    """

    def __init__(self, trainer: PublishedRun):
        self.trainer = trainer
        self._clock: SessionClock | None = None
        self._warned_of: set[str] = set()

    @contextmanager
    def _never_ends_a_run(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a report is not worth a run
            cause = f"{error.strerror}: {error.filename2 or error.filename}" if isinstance(error, OSError) else error
            problem = f"{what}: {type(error).__name__}: {cause}"
            if problem not in self._warned_of:
                warn(problem)
            self._warned_of.add(problem)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Goes on with the record of the run that is resumed, or begins one; so do its samples."""
        if not state.is_world_process_zero:
            return
        with self._never_ends_a_run("the report's record of this run could not be begun"):
            SampleLog(args.output_dir).begin(state.global_step)
            earlier = load_record(args.output_dir) if state.global_step else None
            record = self.trainer.run_record
            record.sessions = [] if earlier is None else earlier.sessions
            self._clock = SessionClock(
                state.global_step, state.log_history, args.device, args.world_size, record.info.command
            )
            record.sessions.append(self._clock.session(state.global_step, state.log_history))

    def _write(self, args, state) -> None:
        if not state.is_world_process_zero:
            return
        with self._never_ends_a_run("the report could not be written"):
            record = self.trainer.run_record
            if self._clock is not None:
                record.sessions[-1] = self._clock.session(state.global_step, state.log_history)
            record.save(args.output_dir)
            write_report(args.output_dir, record, state.log_history)

    def on_save(self, args, state, control, **kwargs) -> None:
        if not self.trainer.is_pushing():
            self._write(args, state)
        self.trainer.push_checkpoint()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.trainer._finish_current_push()
        self.trainer.run_record.kept = kept_model(args, state)
        self._write(args, state)
