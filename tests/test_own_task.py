"""README's own task is what README says: its files, its commands in their order, its figures; and as a notebook."""

import json
import re
import shlex
import sys

import pytest
import yaml
from places import ROOT

SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own task")[2].partition("\n## ")[0]
NAMED = re.compile(r"^```(?:python|yaml)\n(# ([\w.]+)\n.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTER = {"sft": ["--max_steps", "1"], "grpo": ["--max_steps", "1"], "eval --dataset_name": ["--limit", "4"]}
"""What makes a command of the section a matter of a second."""


@pytest.fixture
def own_folder(tmp_path):
    """A folder with the files that the section tells to write, and nothing else."""
    for text, name in NAMED.findall(SECTION):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def commands() -> list[list[str]]:
    """What follows `python` in each command, in their order; `vlm-posttrain` is the module of its name."""
    (block,) = COMMANDS.findall(SECTION)
    lines = [shlex.split(line) for line in block.splitlines() if line]
    starts = {"python": [], "vlm-posttrain": ["-m", "vlm_posttrain"]}
    return [starts[program] + words for program, *words in lines]


def run_in_order(folder, run, more=lambda words: []) -> str:
    """Runs the commands in a folder, each with `more` for its words; returns what the last one printed."""
    for words in commands():
        finished = run(*words, *more(words), start=folder, timeout=600, HF_HUB_OFFLINE="1")
        assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def test_its_commands_run(own_folder, run_warm):
    """Each from the files that the one before it left; with a step of training, and few rows."""

    def less(words: list[str]) -> list[str]:
        for rows in own_folder.glob("*/train.jsonl"):
            rows.write_text("".join(rows.open(encoding="utf-8").readlines()[:64]), encoding="utf-8")
        return next((more for start, more in SHORTER.items() if start in " ".join(words)), [])

    assert "difference [95% interval]" in run_in_order(own_folder, run_warm, less)


def test_its_reward_is_right(own_folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(own_folder), *sys.path])
    from my_reward import right_answer

    texts = ["<answer>red</answer>", "<answer>teal</answer>", "red", "<answer>red</answer> or not"]
    assert right_answer(texts, answer=["red"] * 4) == [1.0, 0.1, 0.0, 0.0]


@pytest.mark.slow
def test_its_model_learns(own_folder, run_warm):
    """As it stands, and as README says: the interval of the difference on held-out rows is above 0."""
    run_in_order(own_folder, run_warm, lambda words: ["--output_dir", "compared"] * ("--compare" in words))
    compared = json.loads((own_folder / "compared" / "comparison.json").read_text(encoding="utf-8"))
    assert compared["right_answer"]["low"] > 0


# -- the notebook -----------------------------------------------------------------------------------------------------

NOTEBOOK = ROOT / "examples" / "own_task.ipynb"


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_stored_outputs_are_of_one_run():
    """They show who does not run it what it does: all cells in order, without an error or a path of a machine."""
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert re.findall(r"/home/|/root/|/tmp/|/work/|site-packages", json.dumps(outputs)) == []


def test_notebook_has_readmes_settings():
    """What both say of training is the same."""
    recipes = yaml.safe_load("\n".join(text for text, name in NAMED.findall(SECTION) if name == "my_task.yaml"))
    source = "".join("".join(cell["source"]) for cell in code_cells())
    settings = ("max_steps", "learning_rate", "temperature", "num_generations", "per_device_train_batch_size")
    said = {name: [float(value) for value in re.findall(rf"{name}=([\d.e-]+)", source)] for name in settings}
    assert {name: recipes[name] in values for name, values in said.items()} == dict.fromkeys(settings, True)


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    """From an empty folder, offline; the last cell says how much better it became."""
    import nbclient
    import nbformat

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert float(re.search(r"difference \+[\d.]+ \[([+-][\d.]+)", said)[1]) > 0
