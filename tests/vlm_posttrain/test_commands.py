"""The one command from folders of a user's: its table, its help, and what it runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from programs import programs

from data.errors import UserError
from vlm_posttrain.commands import COMMANDS, TRAINERS, help_text, run
from vlm_posttrain.import_path import put_current_folder_last

NOT_COMMANDS = {"vlm_posttrain.__main__", "vlm_posttrain.accelerate_process"}


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A folder with modules of the user's that are called like ours and like those of libraries."""
    for name in ("data", "rewards/__init__", "models/__init__", "trainers", "yaml", "psutil"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('a module of the user was imported in place of ours')", encoding="utf-8")
    return tmp_path


def vlm_posttrain(*words: str, folder: Path) -> subprocess.CompletedProcess:
    """What is run as `vlm-posttrain`, where only its folder is on the path, and the current folder first."""
    command = [sys.executable, "-m", "vlm_posttrain", *words]
    environment = {"PYTHONPATH": f".:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_every_program_is_a_command():
    packages = {module for module in COMMANDS.values() if (ROOT / module.replace(".", "/")).is_dir()}
    modules = {f"{module}.__main__" if module in packages else module for module in COMMANDS.values()}
    assert modules == programs().keys() - NOT_COMMANDS
    assert all(name.replace("-", "_") == module.rpartition(".")[2] for name, module in TRAINERS.items())


def test_help_says_what_each_command_does():
    lines = help_text().splitlines()
    assert [name for name in COMMANDS if not any(line.startswith(f"  {name} ") for line in lines)] == []
    assert "  eval             Scores completions from a file with any rewards, or generates them first." in lines


def test_version(tmp_path):
    done = vlm_posttrain("--version", folder=tmp_path)
    (wanted,) = re.findall(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)
    assert done.stdout == f"vlm-posttrain {wanted}\n"


def test_no_module_of_the_current_folder_hides_ours(hostile):
    done = vlm_posttrain("recipes", "selector_sft_tiny", folder=hostile)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "recipes" / "selector_sft_tiny.yaml").read_text(encoding="utf-8")
    done = vlm_posttrain("rce", "--config", "rce_vlm", "--learning_rat", "1", folder=hostile)
    assert done.returncode == 1
    assert done.stderr.startswith("error: command line: unknown key 'learning_rat'; did you mean 'learning_rate'")


def test_the_current_folder_moves_to_the_end_of_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/a", str(tmp_path), "/b"])
    put_current_folder_last()
    assert sys.path == ["/a", "/b", str(ROOT), str(tmp_path)]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", ["", "/a"])
    put_current_folder_last()
    assert sys.path == ["", "/a"]


def test_a_command_is_run_under_its_name(hostile):
    done = vlm_posttrain("recipes", "--kopy", folder=hostile)
    assert done.returncode == 2
    assert done.stderr.startswith("vlm-posttrain recipes: error: ")


def test_help_imports_nothing_heavy(hostile):
    program = "import sys; from vlm_posttrain.__main__ import main; main([]); print({'torch', 'trl'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("\nset()\n")
    assert done.stdout.startswith("usage: vlm-posttrain sft|grpo|")


def test_an_unknown_command_is_an_error():
    with pytest.raises(UserError) as error:
        run("evaluate-reward", [])
    assert str(error.value).startswith("unknown command 'evaluate-reward'; ")
    with pytest.raises(UserError, match="unknown command 'evel'; did you mean 'eval'"):
        run("evel", [])
