"""The toolkit as a wheel in an environment of its own, used from an empty folder and from one full of modules."""

import configparser
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from places import ROOT
from report_agents import AGENT_NAMES

from data.cli.package_files import RECIPES, names_in

pytestmark = pytest.mark.slow
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
SHORT = (
    "--model_name_or_path outputs/tiny --max_steps 2 --num_generations 2 --per_device_train_batch_size 4 "
    "--max_completion_length 8 --max_prompt_length 2048 --output_dir"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The `bin` of an environment that has the wheel, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for name in (name.rstrip("*") for name in setup["options.packages.find"]["include"].split()):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--quiet"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", str(source), *options, "--wheel-dir", str(folder)], check=True, timeout=300)
    venv.create(folder / "venv", with_pip=False)
    [wheel] = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--quiet", wheel], check=True, timeout=300)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return folder / "venv" / "bin"


@pytest.fixture
def here(installed, tmp_path, monkeypatch):
    """Function: options of `vlm-posttrain` in an empty folder -> what it printed; it must end well."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> str:
        program = [installed / "vlm-posttrain", *command.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


def make_data_and_model(here) -> None:
    agents = " ".join(AGENT_NAMES)
    here(f"reports --source easy_vqa --output_dir outputs/data --reports 24 --pool_size 6 --agent_list {agents}")
    here("tiny --output_dir outputs/tiny --corpus outputs/data/train.jsonl --hidden_size 32 --vocab_size 400")


def test_an_empty_folder(here, installed, tmp_path):
    assert [line.split()[0] for line in here("recipes").splitlines()] == names_in(RECIPES)
    assert f"code: {installed.parent}" in here("env")
    here("recipes agent_selection_tiny --copy")
    assert [path.name for path in tmp_path.iterdir()] == ["agent_selection_tiny.yaml"]
    make_data_and_model(here)
    assert "0 scores below the maximum" in here("validate --config agent_selection_tiny --splits train")
    planned = "--accelerate_config accelerate_configs/zero3.yaml --validate_only true"  # which is in the wheel
    assert "each of 8 device(s)" in here(f"grpo --config agent_selection_tiny {SHORT} outputs/x {planned}")
    here(f"grpo --config agent_selection_tiny --launch cpu {SHORT} outputs/grpo")
    assert (
        "vlm-posttrain grpo --config agent_selection_tiny --launch cpu" in Path("outputs/grpo/README.md").read_text()
    )
    of_test = "--dataset_name outputs/data --split test"
    here(f"eval {of_test} --model outputs/grpo --config agent_selection_tiny --output_dir outputs/after")
    assert Path("outputs/after/summary.json").is_file()


def test_a_folder_with_modules_called_like_packages(here, tmp_path):
    for name in ("data", "models/__init__", "trainers", "evaluate", "trl", "accelerate"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user was imported')", encoding="utf-8")
    reward = (
        "def {}(completions, completion_ids, **columns):\n    return [1 - len(ids) / 16 for ids in completion_ids]"
    )
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "mine.py").write_text(reward.format("mine"), encoding="utf-8")
    (tmp_path / "my_rewards.py").write_text(reward.format("brevity"), encoding="utf-8")
    make_data_and_model(here)
    own = "--reward_funcs rewards.mine.mine my_rewards.brevity --reward_weights 1 1"
    assert re.search(
        r"  mine 0.\d+  brevity 0.\d+  ", here(f"grpo --config agent_selection_tiny {own} {SHORT} outputs/a")
    )
    own = "--reward_funcs rewards/mine.py:mine --reward_weights 1 --launch cpu"
    assert re.search(r"  mine 0.\d+  ", here(f"grpo --config agent_selection_tiny {own} {SHORT} outputs/b"))
    here("score --help")
