"""Runs of recipes that are killed and started again, and what they leave."""

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from places import KILLS, ROOT
from safetensors.torch import load_file

WORKER = KILLS / "forked_resume_worker.py"

EVERY_STEP = {
    "use_cpu": True,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "save_total_limit": 2,
    "early_stopping_patience": 50,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
"""Of recipes that evaluate and save after each optimizer step."""

Outcome = Callable[[str, str], tuple[int, Path, str]]
"""(kind, name of a run) -> how it ended (negative: the signal that killed it), its output folder, what it printed."""


def kill_and_resume(
    folder: Path,
    recipes: Mapping[str, tuple[str, dict[str, Any]]],
    kills: Mapping[str, tuple[int | None, bool]],
    run_warm: Callable,
) -> Outcome:
    """Runs each recipe once for each kill; a run called "resumed..." goes on in the folder of "killed...".

    Args:
        folder: for what is written; modules in it can be imported, for rewards.
        recipes: kind -> script (a module of trainers) and recipe.
        kills: name of a run -> optimizer step that it dies at, and whether while that step is saved.
    """
    runs = {}
    for kind, (script, recipe) in recipes.items():
        for name, (kill_at, during_save) in kills.items():
            output = folder / kind / name.replace("resumed", "killed")
            path = folder / f"{kind}_{name}.yaml"
            path.write_text(yaml.safe_dump(recipe | {"output_dir": str(output)}), encoding="utf-8")
            run = {"script": script, "argv": ["--config", str(path)], "log": str(path.with_suffix(".log"))}
            runs[kind, name] = run | {"kill_at": kill_at, "kill_during_save": during_save, "output": str(output)}
    statuses, settings = folder / "statuses.json", folder / "settings.json"
    settings.write_text(json.dumps({"runs": list(runs.values()), "statuses": str(statuses)}), encoding="utf-8")
    path = f"{ROOT}:{WORKER.parent}:{folder}"
    done = run_warm(WORKER, settings, PYTHONPATH=path, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    ended = dict(zip(runs, json.loads(statuses.read_text(encoding="utf-8")), strict=True))

    def of(kind: str, name: str) -> tuple[int, Path, str]:
        run = runs[kind, name]
        return ended[kind, name], Path(run["output"]), Path(run["log"]).read_text(encoding="utf-8")

    return of


def history(output: Path) -> list[dict]:
    """What was logged, without the clock."""
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    clock = ("runtime", "step_time", "samples_per_second", "steps_per_second", "total_flos", "train_loss")
    return [{key: value for key, value in entry.items() if not key.endswith(clock)} for entry in state["log_history"]]


def check_resumed(
    outcome: Outcome, kind: str, suffix: str, from_step: int, history: Callable[[Path], list[dict]] = history
) -> tuple[Path, Path]:
    """Checks that a run was killed and went on from a checkpoint, and logged what an undisturbed one did.

    Args:
        history: gives what is to be equal of what was logged in a folder.

    Returns:
        The folders of the undisturbed run and of the resumed one.
    """
    status, expected_folder, log = outcome(kind, "uninterrupted")
    assert status == 0, log[-3000:]
    assert outcome(kind, f"killed{suffix}")[0] == -signal.SIGKILL
    status, folder, log = outcome(kind, f"resumed{suffix}")
    assert status == 0, log[-3000:]
    assert f"resuming from {folder / f'checkpoint-{from_step}'}" in log
    assert history(folder) == history(expected_folder)
    return expected_folder, folder


def check_equal_weights(expected_file: Path, found_file: Path) -> None:
    """Bit for bit."""
    expected, found = load_file(expected_file), load_file(found_file)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not expected[name].equal(found[name])] == []
