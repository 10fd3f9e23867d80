"""Runs that are killed at seeded moments, started again, and started once more when finished; each in a fork of one
process, which imports once.

    python tests/helpers/kills/kill_worker.py SETTINGS.json

Settings: runs (kind -> script, recipe, kills), folder, seed, results (JSON file to write: see `try_kind`).

A moment is the end of a forward and backward pass, or a file operation below the run's folder: every file that is
opened for writing, renamed or removed, also in the middle of a checkpoint and of the final save.
"""

import hashlib
import importlib
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import transformers
import yaml

from trainers.report import publishing

FILE_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITES = os.O_WRONLY | os.O_RDWR


class Moments:
    """Counts what a run does, and kills it at one of these moments.

    Args:
        folder: of the run.
        kill_at: number of the moment, from 1 on; `None` for none.
    """

    def __init__(self, folder: Path, kill_at: int | None):
        self.folder, self.kill_at = str(folder), kill_at
        self.count = self.last_checkpoint = 0

    def watch(self) -> None:
        sys.addaudithook(self._hear)
        original = transformers.Trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = original(*args, **kwargs)
            self._pass()
            return loss

        transformers.Trainer.training_step = training_step

    def _pass(self) -> None:
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            heard = bool(flags & WRITES)
        else:
            path = arguments[1 if event == "os.rename" else 0] if event in FILE_EVENTS else None
            heard = event in FILE_EVENTS
        if heard and isinstance(path, str | os.PathLike) and str(path).startswith(self.folder):
            self._pass()
            if event == "os.rename" and str(path).endswith("complete.json"):
                self.last_checkpoint = self.count


def start(script: str, recipe: Path, output: Path, log: Path, kill_at: int | None = None) -> int:
    """Runs a training script in a fork; how it ended, negative for a signal. Moments go to a file beside the log."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    moments = Moments(output, kill_at)
    moments.watch()
    status = 0
    try:
        importlib.import_module(f"trainers.{script}").main(["--config", str(recipe)])
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    counted = {"all": moments.count, "last_checkpoint": moments.last_checkpoint}
    log.with_suffix(".moments").write_text(json.dumps(counted), encoding="utf-8")
    sys.stdout.flush()
    os._exit(status)


def content(folder: Path) -> dict[str, str]:
    """File -> hash."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def choose(counted: dict[str, int], kills: int, seed: str) -> list[int]:
    """Moments to be killed at: half of them after the last checkpoint."""
    generator = random.Random(seed)
    last, every = counted["last_checkpoint"], counted["all"]
    late = [generator.randint(last + 1, every) for _ in range(kills // 2)]
    return [generator.randint(1, last) for _ in range(kills - len(late))] + late


def try_kind(kind: str, run: dict[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    """The undisturbed run's status and folder, and of each kill: moment, statuses (killed, resumed, started again when
    finished), folder, whether the third start left every file as it was, and the log."""
    folder.mkdir(parents=True)

    def prepared(name: str) -> tuple[str, Path, Path, Path]:
        recipe, output = folder / f"{name}.yaml", folder / name
        recipe.write_text(yaml.safe_dump(run["recipe"] | {"output_dir": str(output)}), encoding="utf-8")
        return run["script"], recipe, output, folder / f"{name}.log"

    undisturbed = prepared("undisturbed")
    found: dict[str, Any] = {"status": start(*undisturbed), "folder": str(undisturbed[2]), "kills": []}
    found["log"] = undisturbed[3].read_text(encoding="utf-8")
    if found["status"] != 0:
        return found
    found["moments"] = json.loads(undisturbed[3].with_suffix(".moments").read_text(encoding="utf-8"))
    for number, moment in enumerate(choose(found["moments"], run["kills"], f"{seed} {kind}")):
        killed = prepared(f"killed_{number}_at_{moment}")
        statuses = [start(*killed, kill_at=moment), start(*killed)]
        before = content(killed[2])
        statuses.append(start(*killed))
        row = {"moment": moment, "statuses": statuses, "folder": str(killed[2])}
        row |= {"unchanged": before == content(killed[2]), "log": killed[3].read_text(encoding="utf-8")}
        found["kills"].append(row)
    return found


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    publishing.write_report = lambda *args: None  # at every step of every run, it would take minutes
    for script in {run["script"] for run in settings["runs"].values()}:
        importlib.import_module(f"trainers.{script}")
    folder, seed = Path(settings["folder"]), settings["seed"]
    results = {kind: try_kind(kind, run, folder / kind, seed) for kind, run in settings["runs"].items()}
    Path(settings["results"]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
