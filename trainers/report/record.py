"""What is known of a run beside its weights and figures: `report.json`, from which report and card are written."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.io.records import write_json
from trainers.run.machine import device_names, peak_memory, versions

RECORD_FILE = "report.json"


@dataclass
class RunInfo:
    """What a run was, for its report and model card.

    Attributes:
        method: "GRPO", "SFT", ...
        command: the command line.
        recipe: text of the recipe.
        dataset: name or path of the data.
        rewards: one line a reward.
        base_model: that training started from.
        results: label -> figure, shown at the top.
        kind: "vlm", "selector", "reward" or "factors".
        rows: split or purpose -> number of rows.
    """

    method: str
    command: str
    recipe: str
    dataset: str
    base_model: str
    rewards: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    kind: str = "vlm"
    rows: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptModel:
    """The model that a run leaves, where it is not that of the last step.

    Attributes:
        step: optimizer steps that it made.
        metric: why it was kept.
        last_step: that the run made.
    """

    step: int
    metric: str
    last_step: int


def kept_model(args: Any, state: Any) -> KeptModel | None:
    """The best model of a run that has loaded it at its end (`load_best_model_at_end`); `None`: the last one is kept.

    Args:
        args: `transformers.TrainingArguments`.
        state: `transformers.TrainerState` after training.
    """
    folder = state.best_model_checkpoint
    number = re.search(r"-(\d+)$", folder or "")
    if not args.load_best_model_at_end or number is None:
        return None
    metric = args.metric_for_best_model or "loss"
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    return KeptModel(int(number[1]), metric, state.global_step)


@dataclass(frozen=True)
class Session:
    """One start of a run, until it ended or was killed.

    Attributes:
        started: date and time, UTC.
        from_step, to_step: optimizer steps made before it, and at its last record.
        seconds: between the two.
        tokens: that it trained on, `None` where the trainer does not count them.
        device: what it ran on.
        memory: most that the main process had, in GB, by kind.
        command: it was started by.
    """

    started: str
    from_step: int
    to_step: int
    seconds: float
    device: str
    command: str
    tokens: int | None = None
    memory: Mapping[str, float] = field(default_factory=dict)


class SessionClock:
    """Measures the session that begins now.

    Args:
        step: optimizer steps made before.
        history: what was logged before.
        device: of this process.
        processes: of the run.
    """

    def __init__(self, step: int, history: Sequence[Mapping[str, Any]], device: Any, processes: int, command: str):
        self._begun = time.monotonic()
        self._tokens_before = _tokens(history) or 0
        self._device = device
        self._start = Session(
            datetime.now(UTC).isoformat(timespec="seconds"),
            step,
            step,
            0.0,
            device_names(device, processes),
            command,
        )

    def session(self, step: int, history: Sequence[Mapping[str, Any]]) -> Session:
        """The session as it is at this step."""
        return replace(
            self._start,
            to_step=step,
            seconds=time.monotonic() - self._begun,
            tokens=self._counted(_tokens(history)),
            memory=peak_memory(self._device),
        )

    def _counted(self, tokens: int | None) -> int | None:
        if tokens is None:
            return None
        return tokens - self._tokens_before if tokens >= self._tokens_before else tokens  # some start at 0 again


def _tokens(history: Sequence[Mapping[str, Any]]) -> int | None:
    logged = [entry["num_tokens"] for entry in history if isinstance(entry.get("num_tokens"), int | float)]
    return int(logged[-1]) if logged else None


@dataclass
class RunRecord:
    """Everything in `report.json`.

    Attributes:
        sessions: in the order of their starts.
        held_out: measurements on held-out rows (`trainers.report.held_out`).
        name, loads_from: what the model card calls the model, and where it is loaded from.
        diagnoses: what the model decides by: {"source", "name" of the model, "figures" of `rewards.diagnosis`}.
    """

    info: RunInfo
    sessions: list[Session] = field(default_factory=list)
    kept: KeptModel | None = None
    held_out: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
    name: str = ""
    loads_from: str = ""
    diagnoses: list[dict[str, Any]] = field(default_factory=list)

    def save(self, output_dir: str | Path) -> None:
        write_json(Path(output_dir) / RECORD_FILE, asdict(self))

    @property
    def steps(self) -> int:
        return self.sessions[-1].to_step if self.sessions else 0

    @property
    def facts(self) -> dict[str, str]:
        """What report and card say of the run's course: label -> text."""
        facts = {f"rows, {name}": f"{count:,}" for name, count in self.info.rows.items()}
        if not self.sessions:
            return facts
        seconds = sum(session.seconds for session in self.sessions)
        facts |= {"started": f"{self.sessions[0].started.replace('T', ' ').removesuffix('+00:00')} UTC"}
        facts |= {"duration": format_duration(seconds), "optimizer steps": f"{self.steps:,}"}
        resumed = [f"step {session.from_step:,}" for session in self.sessions[1:]]
        if resumed:
            facts["resumed"] = f"from {', '.join(resumed)}"
        if self.kept is not None:
            facts["model kept"] = f"that of step {self.kept.step:,}, the best by {self.kept.metric}"
        tokens = [session.tokens for session in self.sessions if session.tokens is not None]
        if tokens and seconds:
            facts["tokens"] = f"{sum(tokens):,}, {sum(tokens) / seconds:,.0f} a second"
        facts["hardware"] = "; ".join(dict.fromkeys(session.device for session in self.sessions))
        for kind in dict.fromkeys(kind for session in self.sessions for kind in session.memory):
            peak = max(session.memory.get(kind, 0.0) for session in self.sessions)
            facts[f"peak {kind}"] = f"{peak:.2f} GB, main process"
        return facts


def format_duration(seconds: float) -> str:
    """
    >>> [format_duration(seconds) for seconds in (7.31, 75, 3675)]
    ['7.3 s', '1 min 15 s', '1 h 1 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def load_record(output_dir: str | Path) -> RunRecord | None:
    """What is stored in a run's folder; `None` where there is nothing that can be read."""
    path = Path(output_dir) / RECORD_FILE
    try:
        content = json.loads(path.read_bytes())
        names = {one.name for one in fields(RunRecord)}
        record = RunRecord(**{name: value for name, value in content.items() if name in names})
        record.info = RunInfo(**content["info"])
        record.sessions = [Session(**session) for session in content["sessions"]]
        record.kept = None if content["kept"] is None else KeptModel(**content["kept"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record
