"""What a column of the table in docs/families.md runs for a family: training, and using what was trained."""

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from family_table import Outcome
from places import HELPER_FOLDERS, ROOT, WORKERS
from safetensors import safe_open
from short_runs import flags

Start = Callable[..., subprocess.CompletedProcess]
"""The fixture `run_warm`."""

TRAINING = {
    "dtype": "float32",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 3,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
}
ADAPTERS = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **ADAPTERS}
WAYS = {
    "full": {"gradient_checkpointing": True},
    "adapters": ADAPTERS,
    "frozen tower": {"freeze_vision_tower": True},
}
"""What every trainer trains."""

GRPO = {
    "reward_funcs": ["family_rewards.mean_token"],
    "per_device_train_batch_size": 6,
    "num_generations": 2,
    "max_completion_length": 6,
    "beta": 0.1,
    "num_iterations": 2,
}
SHARED = {"shared_prefix": True, "shared_prefix_check": True, "per_device_train_batch_size": 6}
UNBALANCED = {"router_aux_loss_coef": 0.0}
"""Without the load-balancing loss of experts, which trainers of TRL's add for mixtures, and with which no prompts are
shared."""
_PLAIN = re.compile(r"each row computes its prompt by itself \(shared_prefix: auto\): (.+)")
_TOWER = re.compile(r"\b(visual|vision_tower|vision_model)\.")


@dataclass(frozen=True)
class Method:
    """A trainer of vision-language models.

    Attributes:
        module: of its script.
        data: folder of those that `family_data.write_data` writes.
        options: beside `TRAINING`.
        rewards: its models give scores instead of texts.
    """

    module: str
    data: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rewards: bool = False


METHODS = {
    "SFT": Method("trainers.sft", "chat"),
    "GRPO": Method("trainers.grpo", "chat", GRPO),
    "RCE": Method("trainers.rce", "groups", {"policy": "vlm"}),
    "offline GRPO": Method("trainers.offline_grpo", "groups", {"policy": "vlm", "beta": 0.1}),
    "reward model": Method("trainers.reward", "preferences", {"own_folder": False}, rewards=True),
}


class Fault(AssertionError):
    """A run that neither worked nor was refused in words that a user can use."""


class Refused(Exception):
    """A program says in one line that it does not do this, and why."""


@dataclass
class Cell:
    """Runs of one family.

    Args:
        start: the fixture `run_warm`.
        model: folder of the family's tiny model.
        data: what `family_data.write_data` wrote.
        folder: for what the runs write.

    Attributes:
        reasons: for which rows went the plain way, where prompts could have been shared.
    """

    start: Start
    model: Path
    data: Path
    folder: Path
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.folder.mkdir(parents=True)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess:
        path = ":".join(map(str, (ROOT, *HELPER_FOLDERS)))
        found = self.start(WORKERS / "family_worker.py", *arguments, PYTHONPATH=path)
        if "Traceback" in found.stderr:
            raise Fault(f"{' '.join(map(str, arguments))}\n{found.stderr[-3000:]}")
        return found

    def train(self, method: Method, name: str, **options: Any) -> Path:
        """The folder of a run.

        Raises:
            Refused: by `--validate_only` too.
            Fault: it failed otherwise.
        """
        output = self.folder / re.sub(r"\W+", "_", f"{method.module}_{name}")
        chosen = {**TRAINING, **method.options, **options}
        model = {"model_name_or_path": self.model, "dataset_name": self.data / method.data, "output_dir": output}
        command = ["-m", method.module, *flags(**model, **chosen)]
        found = self._run(*command)
        if found.returncode:
            reason = _one_line(found.stderr, self.model)
            checked = self._run(*command, "--validate_only", "true")
            if not checked.returncode or _one_line(checked.stderr, self.model) != reason:
                raise Fault(f"{name}: {reason!r}, but by --validate_only: {checked.stderr[-3000:] or 'valid'}")
            raise Refused(reason)
        self.reasons += _PLAIN.findall(found.stderr + found.stdout)
        return output

    def use(self, method: Method, trained: Path) -> None:
        """Lets the trained model score, or answer."""
        output = trained.with_name(f"{trained.name}_used")
        if method.rewards:
            source = ["--dataset_name", str(self.data / "responses"), "--output", f"{output}.jsonl"]
            found = self._run("-m", "rewards.score", "--model", str(trained), *source)
        else:
            source = ["--dataset_name", str(self.data / "chat"), "--output_dir", str(output), "--limit", "3"]
            asked = ["--rewards", "vqa_accuracy", "--max_new_tokens", "4"]
            found = self._run("-m", "rewards.eval", "--model", str(trained), *source, *asked)
        if found.returncode:
            raise Fault(f"what was trained cannot be used: {found.stderr[-3000:]}")

    def in_context(self) -> None:
        """Answers with examples in the prompt."""
        source = ["--dataset_name", str(self.data / "vqa"), "--model", str(self.model), "--pool_size", "2"]
        asked = ["--methods", "zero_shot", "random", "--shots", "1", "--device", "cpu"]
        found = self._run("-m", "rollouts.in_context", *source, *asked, "--output_dir", str(self.folder / "answers"))
        if found.returncode:
            raise Refused(_one_line(found.stderr, self.model))


def _one_line(stderr: str, model: Path) -> str:
    """Why a program refused, without the names of this machine's folders.

    Raises:
        Fault: it did not say so in one line.
    """
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or stderr.rstrip().splitlines()[-1] != lines[0]:
        raise Fault(f"expected one line that says what is wrong, found {stderr[-3000:]}")
    return lines[0].removeprefix("error: ").replace(str(model), model.name)


def _weights(folder: Path) -> dict[str, Any]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found


def check_learned(way: str, trained: Path, model: Path) -> None:
    """Raises `Fault` unless what was to be trained has moved, and nothing else."""
    after = _weights(trained)
    if way == "adapters":
        if not any(value.abs().max() > 0 for name, value in after.items() if "lora_B" in name):
            raise Fault(f"{trained.name}: the adapters have not moved")
        return
    before = _weights(model)
    both = [name for name in after if name in before]
    moved = {name for name in both if not after[name].equal(before[name])}
    towers = {name for name in both if _TOWER.search(name)}
    if not towers or not moved - towers:
        raise Fault(f"{trained.name}: nothing has moved ({len(both)} weights, {len(towers)} of towers)")
    if bool(moved & towers) != (way == "full"):
        raise Fault(f"{trained.name}: {len(moved & towers)} of {len(towers)} weights of the tower have moved")


# -- the columns ------------------------------------------------------------------------------------------------------


def train_and_use(cell: Cell, method: Method) -> None:
    for way, options in WAYS.items():
        trained = cell.train(method, way, **options)
        check_learned(way, trained, cell.model)
        if way != "frozen tower":  # what is saved has the form of "full"
            cell.use(method, trained)


def share(cell: Cell) -> None:
    for name, method in METHODS.items():
        cell.train(method, "shared", **SHARED, **(UNBALANCED if name in ("SFT", "GRPO") else {}))


def four_bit(cell: Cell) -> None:
    for name in ("SFT", "GRPO", "reward model"):
        cell.use(METHODS[name], cell.train(METHODS[name], "four_bit", **FOUR_BIT))


RUNS: dict[str, Callable[[Cell], None]] = {
    **{name: lambda cell, method=method: train_and_use(cell, method) for name, method in METHODS.items()},
    "shared prompts": share,
    "QLoRA": four_bit,
    "in-context": Cell.in_context,
}
"""Column of the table -> its runs. vLLM needs an environment of its own (tests/vllm/test_families.py)."""


def outcome_of(cell: Cell, column: str) -> Outcome:
    """What happens in a column.

    Raises:
        Fault: a crash, or a refusal that `--validate_only` did not make.
    """
    try:
        RUNS[column](cell)
    except Refused as refused:
        return Outcome("no", str(refused))
    reasons = list(dict.fromkeys(cell.reasons))
    return Outcome("plain", "; ".join(reasons)) if reasons else Outcome("yes")
