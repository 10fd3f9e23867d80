"""Checkpoints that survive being killed while they are written, and hold all that a run needs to go on as it was."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from data.io.records import write_json
from models.run_folders import mark_complete
from trainers.run.origin import write_run
from trainers.run.resuming import whole_checkpoint

STATE_FILE = "posttrain_state.json"


class SavesLast(TrainerCallback):
    """Puts off the checkpoint of a step that ends an epoch or the training until everything of that step is done: what
    is logged and evaluated at the end of an epoch would be missing in it, and after resuming nobody would do it."""

    _put_off = False

    def on_step_end(self, args, state, control, **kwargs) -> None:
        ends = control.should_training_stop or state.epoch == int(state.epoch)
        if control.should_save and ends:
            control.should_save, self._put_off = False, True

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        if self._put_off:
            control.should_save, self._put_off = True, False


class _GoesOn(TrainerCallback):
    """Restores what `Trainer.train` sets to its start after the checkpoint has been loaded."""

    def __init__(self, trainer: "CompleteCheckpoints", loop: Mapping[str, Any] | None):
        self.trainer = trainer
        self.loop = loop

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        state.compute_steps(args, state.max_steps)  # how often to log, evaluate and save, as the recipe says now
        if state.best_global_step:  # the folder may have been moved since
            best = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None
        if self.loop is not None:
            self.trainer.load_loop_state(self.loop)


def has_ended(state: TrainerState, max_steps: int) -> bool:
    """Whether the training that a checkpoint is of has nothing left to do: all steps are done, or it stopped early.

    Args:
        state: as it was stored.
        max_steps: of the training that would go on.
    """
    stored = state.stateful_callbacks.get("TrainerControl", {})
    stopped = stored.get("args", {}).get("should_training_stop", False)
    return state.global_step >= max_steps or (stopped and state.global_step < state.max_steps)


class CompleteCheckpoints:
    """Trainer mix-in: marks a checkpoint when everything is in it, with hashes of all its files, deletes older ones
    only after that, and resumes so that weights and history are those of a run that was never killed.

    It also stores what `extra_state` returns (plain JSON) and gives it to `load_extra_state` on resuming.

    Attributes:
        origin: of `trainers.run.origin`, stored in every checkpoint; set by the training script.
        found_whole: checkpoint whose files were verified before; set by the training script.
    """

    origin: Mapping[str, Any] | None = None
    found_whole: str | None = None
    _ended = False
    """The checkpoint that was resumed is the last one: there is nothing left to train."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(SavesLast())

    # -- what subclasses add ------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """State of the trainer beyond the parent's; the same on every process."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `extra_state` returned."""

    def save_process_state(self, folder: Path) -> None:
        """Writes what differs between processes; called on each of them."""

    def load_process_state(self, folder: Path) -> None:
        """Reads what `save_process_state` wrote."""

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = self._get_output_dir(trial=trial)
        folder = Path(run_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # cut short or damaged: nothing of it may remain
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        folder.mkdir(parents=True, exist_ok=True)
        self.save_process_state(folder)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        losses = gather_object([self._tr_loss.item()])
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_json(folder / STATE_FILE, {**self.extra_state(), "loop": self._loop_state(losses)})
            if self.origin is not None:
                write_run(folder, self.origin)
            mark_complete(folder, global_step=self.state.global_step, resumable=not self.args.save_only_model)
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _loop_state(self, losses: Sequence[float]) -> dict[str, Any]:
        """What the parent's loop has gathered since it logged last, and over the run.

        Args:
            losses: of each process, the sum since the last log.
        """
        return {
            "losses": list(losses),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "training": self.model.training,
        }

    # -- resuming -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The parent's, which would load what it can of a checkpoint that is damaged or was cut short, and does not
        read `args.resume_from_checkpoint`.

        Raises:
            RecipeError: the checkpoint is not as it was written.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        if resume_from_checkpoint != self.found_whole:
            resume_from_checkpoint = whole_checkpoint(resume_from_checkpoint, self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def load_loop_state(self, loop: Mapping[str, Any]) -> None:
        """Restores what `_loop_state` returned; on another number of processes each gets the mean of the losses."""
        losses = loop["losses"]
        same = len(losses) == self.accelerator.num_processes
        loss = losses[self.accelerator.process_index] if same else sum(losses) / len(losses)
        self._tr_loss = torch.tensor(loss, device=self.args.device)
        self._total_loss_scalar = loop["total_loss"]
        self._globalstep_last_logged = loop["last_logged"]
        if self._ended:
            self.model.train(loop["training"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The parent's; the mean loss is that of all steps, also of those before resuming."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The parent's, which would train one step more where none is left."""
        if self._ended:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Loads by `from_pretrained`, where the parent would leave every weight as it was.

        `save_pretrained` writes a Qwen2-VL under the published names of its weights, which the parent hands, unchanged
        and not strictly, to `load_state_dict`.
        """
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint, dtype="auto").state_dict())

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not isinstance(self.model, PreTrainedModel):
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        fresh = _hyperparameters(self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)
        folder = Path(checkpoint)
        stored = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        self._ended = has_ended(stored, self.state.max_steps)
        if not self.is_deepspeed_enabled:
            _take_over(self.optimizer, self.lr_scheduler, fresh)
        self.args.eval_on_start = False
        state = {}
        if (folder / STATE_FILE).is_file():
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        self.add_callback(_GoesOn(self, state.pop("loop", None)))
        if state:
            self.load_extra_state(state)
        self.load_process_state(folder)


def metrics_state(metrics: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Figures gathered since the last log, as JSON can hold them."""
    return {name: list(values) for name, values in metrics.items()}


def restored_metrics(stored: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """What `metrics_state` returned, as TRL's trainers gather it."""
    return defaultdict(list, {name: list(values) for name, values in stored.items()})


# -- hyperparameters --------------------------------------------------------------------------------------------------


def _hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    """Learning rate, weight decay, betas and their like, of each group of parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _take_over(optimizer: Any, scheduler: Any, fresh: Sequence[Mapping[str, Any]]) -> None:
    """Puts the recipe's hyperparameters in the places of the checkpoint's where they differ, and lets the learning
    rate follow the recipe's schedule from the step that was reached.

    Args:
        fresh: of the optimizer before the checkpoint was loaded.
    """
    rates = [group.get("initial_lr", group["lr"]) for group in fresh]
    for group, recipe in zip(optimizer.param_groups, fresh, strict=True):
        group.update({key: value for key, value in recipe.items() if key != "lr"})
    if hasattr(scheduler, "lr_lambdas"):
        scheduler.base_lrs = rates
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, rate, factor in zip(optimizer.param_groups, rates, factors, strict=True):
            group["lr"] = rate * factor
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
