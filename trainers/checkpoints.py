"""Checkpoints that survive being killed while they are written, and finding the one to go on from."""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from data.records import write_json
from models.checkpoints import COMPLETE_FILE, checkpoint_folders, newest_complete_checkpoint
from trainers.console import say
from trainers.recipes import RecipeError

logger = logging.getLogger(__name__)

STATE_FILE = "posttrain_state.json"


class CompleteCheckpoints:
    """Trainer mix-in: marks a checkpoint when everything is in it, and deletes older ones only after that.

    It also stores what `extra_state` returns (plain JSON) and gives it to `load_extra_state` on resuming.
    """

    def extra_state(self) -> dict[str, Any]:
        """State of the trainer beyond the parent's; the same on every process."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `extra_state` returned."""

    def save_process_state(self, folder: Path) -> None:
        """Writes what differs between processes; called on each of them."""

    def load_process_state(self, folder: Path) -> None:
        """Reads what `save_process_state` wrote."""

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = self._get_output_dir(trial=trial)
        folder = Path(run_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COMPLETE_FILE).unlink(missing_ok=True)
        self.save_process_state(folder)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_json(folder / STATE_FILE, self.extra_state())
            write_json(folder / COMPLETE_FILE, {"global_step": self.state.global_step})
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

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
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            stored = Path(checkpoint) / STATE_FILE
            if stored.is_file():
                self.load_extra_state(json.loads(stored.read_text(encoding="utf-8")))
            self.load_process_state(Path(checkpoint))


def checkpoint_to_resume(args: Any, resume: bool) -> str | None:
    """The checkpoint that a run goes on from: the one named, or the newest complete one of its output folder.

    Raises:
        RecipeError: the one named does not exist.
    """
    named = args.resume_from_checkpoint
    if named is not None:
        if not (Path(named) / "trainer_state.json").is_file():
            raise RecipeError(f"resume_from_checkpoint: no checkpoint in '{named}' (expected trainer_state.json)")
        return named
    folders = checkpoint_folders(args.output_dir)
    newest = newest_complete_checkpoint(args.output_dir)
    if not folders:
        return None
    if not resume:
        raise RecipeError(
            f"output_dir: {args.output_dir} holds checkpoints of an earlier run and resume is false; "
            "choose another folder or remove them"
        )
    ignored = [folder.name for folder in folders if newest is None or folder.name > newest.name]
    say(f"resuming from {newest}" if newest else f"starting anew: no checkpoint in {args.output_dir} is complete")
    if ignored and newest is None:
        logger.warning("ignoring incomplete checkpoints: %s", ", ".join(ignored))
    return None if newest is None else str(newest)
