"""What tests of every room share: oracle cases, a tiny model, a small data set of reports, and running commands."""

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from places import ROOT, WORKERS
from report_agents import AGENT_NAMES

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
os.environ["OMP_NUM_THREADS"] = "1"  # as in the commands that tests start: sums then agree to the last bit
# DeepSpeed compiles an extension. In the common folder, a run that was killed leaves a lock that stops all later ones.
EXTENSIONS = tempfile.TemporaryDirectory(prefix="torch-extensions-")
os.environ["TORCH_EXTENSIONS_DIR"] = EXTENSIONS.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["DS_ACCELERATOR"] = "cpu"


def pytest_collection_finish() -> None:
    """What the tests import is left out of collecting garbage, which looks through all of it several times a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def oracle():
    """Function: name of a file of cases in tests/oracles -> its content."""

    def read(name: str):
        return json.loads((ROOT / "tests" / "oracles" / f"{name}.public.json").read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def run_command():
    """Function: arguments of `python` -> finished process, run from the root of the repository."""

    def run(*arguments: str | Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def run_warm(tmp_path_factory):
    """Function: arguments of `python` -> finished process, as of `run_command`, but forked from one that has imported
    what takes long (warm_worker.py).

    With `processes`, as many do the same, as torchrun starts them; the status is the first that is not 0. Not for
    tests of the start itself, nor for variables that are read when a library is imported, but for those of the Hub.
    `start` is the folder that it is started from.
    """
    folder = tmp_path_factory.mktemp("warm")
    command = [sys.executable, str(WORKERS / "warm_worker.py")]
    started: list[subprocess.Popen] = []

    def ask(order: dict) -> list[int]:
        if not started:
            with (folder / "worker.log").open("w") as log:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
                started.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        print(json.dumps(order), file=started[0].stdin, flush=True)
        answer = started[0].stdout.readline()
        assert answer, (folder / "worker.log").read_text(encoding="utf-8")[-3000:]
        return json.loads(answer)

    def run(
        *arguments: str | Path, start: Path = ROOT, processes: int = 1, timeout: int = 300, **environment: str
    ) -> subprocess.CompletedProcess:
        own = Path(tempfile.mkdtemp(dir=folder))
        order = {"arguments": [*map(str, arguments)], "environment": environment, "processes": processes}
        order |= {
            "folder": str(start),
            "timeout": timeout,
            "stdout": str(own / "stdout"),
            "stderr": str(own / "stderr"),
        }
        status = next(filter(None, ask(order)), 0)
        texts = ((own / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(order["arguments"], status, *texts)

    yield run
    if started:
        started[0].stdin.close()
        started[0].wait(60)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a random Qwen2-VL of 0.2 M parameters with its processor."""
    from models.tiny import main

    folder = tmp_path_factory.mktemp("model") / "tiny"
    main(["--output_dir", str(folder), "--hidden_size", "32", "--vocab_size", "400"])
    return folder


@pytest.fixture(scope="session")
def tiny_family(tiny_model, tmp_path_factory):
    """Function: model type -> folder of a tiny model of that family with its processor."""
    from models.tiny import main

    folders = {"qwen2_vl": tiny_model}

    def make(family: str) -> Path:
        if family == "smolvlm":
            pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp("families") / family
            sizes = ["--hidden_size", "32", "--vocab_size", "400"]
            main(["--family", family, "--output_dir", str(folders[family]), *sizes])
        return folders[family]

    return make


@pytest.fixture(scope="session")
def tiny_reward_model(tiny_model, tmp_path_factory) -> Path:
    """Folder of a random reward model on `tiny_model`, whose scores spread over its bounds of -5 and 5."""
    import torch

    from models.families.loading import load_processor
    from models.reward.load import from_backbone

    torch.manual_seed(0)
    model = from_backbone(str(tiny_model), {"system_prompt": "Judge the answer."}, dtype=torch.float32)
    for parameter in model.score_head.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    folder = tmp_path_factory.mktemp("reward_model") / "tiny_reward"
    model.save_pretrained(folder)
    load_processor(str(tiny_model)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def report_data(tmp_path_factory) -> Path:
    """Folder of agent-selection records with one image each: 24 to train on, 4 validation, 4 test."""
    from data.quality_reports import main

    folder = tmp_path_factory.mktemp("reports")
    main(
        ["--source", "easy_vqa", "--output_dir", str(folder), "--reports", "32", "--pool_size", "6", "--seed", "3"]
        + ["--train_split", ".75", "--val_split", ".125", "--test_split", ".125", "--workers", "2"]
        + ["--agent_list", *AGENT_NAMES]
    )
    return folder
