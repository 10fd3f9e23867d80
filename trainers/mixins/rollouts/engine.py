"""How GRPO's rollouts are made where transformers makes them: by the loop of models/decoding, where that is exact."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file

from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting, parse_drafts
from models.decoding.engine import Engine, rolling_out
from models.shared_prefix.modes import parse_mode


@dataclass
class RolloutEngineArguments:
    """What recipes of GRPO say about the loop that rolls out. Stands before `trl.GRPOConfig`."""

    rollout_engine: str = field(
        default="auto",
        metadata={
            "help": "Roll out with each prompt's keys and values once, and without rows that have ended: auto, where "
            "that is exact; true, or else it is an error; false, never.",
            "type": str | bool,
        },
    )
    rollout_stream: Literal["transformers", "own"] = field(
        default="transformers",
        metadata={
            "help": "Random numbers of rollouts: those that transformers draws, so that a seed gives the same "
            "completions as without the loop; or one for each row and step, which is faster."
        },
    )
    rollout_drafts: str | int = field(
        default=0,
        metadata={
            "help": "Tokens that are looked up and sampled at once; completions stay the same. 0: none; auto: as many "
            "as pay, by what is accepted and what forwards take.",
            "type": str | int,
        },
    )
    rollout_slots: int | None = field(
        default=None,
        metadata={
            "help": "Completions that are computed at once; others take the places of those that end. Needs "
            "rollout_stream: own. Default: all."
        },
    )
    rollout_graphs: bool = field(
        default=False,
        metadata={"help": "Record the forward of a token as a CUDA graph and replay it, on a GPU."},
    )
    rollout_check: bool = field(
        default=False,
        metadata={"help": "Roll the first batch out by the loop and by transformers, and stop if they differ."},
    )

    def __post_init__(self):
        self.rollout_engine = parse_mode(self.rollout_engine, "rollout_engine")
        self.rollout_drafts = parse_drafts(self.rollout_drafts, "rollout_drafts")
        asked = {
            "rollout_engine": self.rollout_engine == "true",
            "rollout_stream": self.rollout_stream == "own",
            "rollout_drafts": self.rollout_drafts,
            "rollout_slots": self.rollout_slots is not None,
            "rollout_graphs": self.rollout_graphs,
            "rollout_check": self.rollout_check,
        }
        found = next((name for name, said in asked.items() if said), None)
        if self.use_vllm and found is not None:
            value = getattr(self, found)
            raise ValueError(f"{found}: {value}: is of rollouts by transformers, found use_vllm: true")
        self._check_slots()
        super().__post_init__()

    def _check_slots(self) -> None:
        slots = self.rollout_slots
        if slots is None:
            return
        if self.rollout_stream != "own":
            raise ValueError(f"rollout_slots: {slots}: needs rollout_stream: own, found {self.rollout_stream!r}")
        if self.rollout_graphs:
            raise ValueError(
                f"rollout_graphs: true: rows stay in their places until all have ended, found rollout_slots: {slots}"
            )


class LoopedRollouts:
    """The part of a `trl.GRPOTrainer` that rolls out by the loop of models/decoding."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Not where recipes are checked, which machines without a GPU do too.
        if self.args.rollout_graphs and self.accelerator.device.type != "cuda":
            raise ValueError(f"rollout_graphs: true: expected a CUDA device, found {self.accelerator.device}")
        drafting = Drafting.of(self.args.rollout_drafts)
        decoding = Decoding(self.args.rollout_stream, drafting, self.args.rollout_slots, self.args.rollout_graphs)
        gathered = self.args.ds3_gather_for_generation
        self.engine = Engine(self.args.rollout_engine, decoding, self.args.rollout_check, gathered)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save_process_state(self, folder: Path) -> None:
        """The parent's, and what drafts are looked up in: without it the same tokens would come, of other drafts, and
        their log-probabilities in the log would be rounded otherwise."""
        super().save_process_state(folder)
        drafting = self.engine.decoding.drafting
        if drafting is not None:
            save_file(drafting.store.tensors(), self._drafts_file(folder))

    def load_process_state(self, folder: Path) -> None:
        super().load_process_state(folder)
        drafting, stored = self.engine.decoding.drafting, self._drafts_file(folder)
        if drafting is not None and stored.is_file():
            drafting.store.load(load_file(stored))

    def _drafts_file(self, folder: Path) -> Path:
        return folder / f"drafts_{self.accelerator.process_index}.safetensors"

    # -- rollouts -----------------------------------------------------------------------------------------------------

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple:
        """The parent's, by the loop."""
        if self.use_vllm:
            return super()._generate_single_turn(*args, **kwargs)
        with rolling_out(self.model, self.engine, shares=self.sharing.usable(self.model)):
            return super()._generate_single_turn(*args, **kwargs)
