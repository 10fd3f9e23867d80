"""T20 and T24 by real commands: every training script under ZeRO-2 and ZeRO-3, and by torchrun, on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from places import ROOT
from short_runs import NAMES, TRAINING, flags, trainers

from data.candidates.pools import write_pools
from data.io.records import write_jsonl
from trainers.setup.checks import check_precision
from trainers.setup.recipes import RecipeError

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
BIN = Path(sys.executable).parent
TORCHRUN = [BIN / "torchrun", "--standalone", "--nproc_per_node", "2"]


def launch(*parts: object) -> subprocess.CompletedProcess:
    command = [str(part) for part in parts]
    return subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=500)


def accelerate(config: str) -> list:
    """As docs/recipes.md launches."""
    file = ROOT / "accelerate_configs" / f"{config}.yaml"
    return [BIN / "accelerate", "launch", "--config_file", file, "--num_processes", 2]


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_model, report_data):
    """Function: (launcher, name, further options) -> finished process and output folder."""
    folder = tmp_path_factory.mktemp("launches")
    runs = trainers(folder, tiny_model, report_data)

    def run(launcher: list, name: str, output: str, **more) -> tuple[subprocess.CompletedProcess, Path]:
        module, options = runs[name]
        script = Path(*module.split(".")).with_suffix(".py")
        argv = flags(**TRAINING | options | more, output_dir=folder / output)
        return launch(*launcher, script, *argv), folder / output

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_t20_every_training_script_ends_well_under_deepspeed(train, config, name):
    done, output = train(accelerate(config), name, f"{config}-{name}", bf16=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.count("model saved to") == 1
    assert {"model.safetensors", "run.json", "report.html", "README.md"} <= {path.name for path in output.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_t20_by_torchrun(train, name):
    done, output = train(TORCHRUN, name, f"torchrun-{name}")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.count("model saved to") == 1
    assert {"model.safetensors", "run.json", "report.html", "README.md"} <= {path.name for path in output.iterdir()}


@pytest.mark.slow
def test_t24_deepspeed_refuses_another_learning_rate(train):
    """And goes on with more steps, which it can."""
    saving = {"bf16": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 2, "lr_scheduler_type": "constant"}
    done, output = train(accelerate("zero2"), "rce", "resumed", **saving)
    assert done.returncode == 0, done.stderr[-4000:]
    changed = saving | {"max_steps": 3, "resume": "changed"}
    done, _ = train(accelerate("zero2"), "rce", "resumed", **changed, learning_rate=0.5)
    assert done.returncode == 1
    assert done.stderr.count("DeepSpeed restores its optimizer as it was, so that another learning_rate (was ") == 1
    assert not (output / "checkpoint-3").exists()
    done, _ = train(accelerate("zero2"), "rce", "resumed", **changed)
    assert done.returncode == 0, done.stderr[-4000:]
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in state["log_history"] if "loss" in row] == [1, 2, 3]


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Folder with questions and pools."""
    folder = tmp_path_factory.mktemp("records")
    colours = ["red", "blue", "green", "yellow", "black", "white"]
    for colour in colours:
        Image.new("RGB", (56, 56), colour).save(folder / f"{colour}.png")
    rows = [
        {"id": f"q{number}", "image": f"{colour}.png", "question": f"color {number}?", "answers": [colour] * 10}
        for number, colour in enumerate(colours)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    ids = [row["id"] for row in rows]
    write_pools(folder / "pools.jsonl", {one: [other for other in ids if other != one] for one in ids}, "random")
    return folder


SHARED = {
    "rollouts.candidates": ["--shots", 1, "--num_retrieval", 0, "--output", "{}/groups.jsonl"],
    "rollouts.beams": ["--shots", 1, "--beam_size", 2, "--output", "{}/groups.jsonl"],
    "rollouts.in_context": ["--split", "train", "--methods", "random", "--shots", 1, "--output_dir", "{}/evaluation"],
}


@pytest.mark.slow
@pytest.mark.parametrize("module", SHARED)
def test_t20_commands_share_their_work(module, records, tiny_model, tmp_path):
    argv = [str(part).format(tmp_path) for part in SHARED[module]]
    vlm = ["--model", tiny_model, "--max_new_tokens", 2]
    done = launch(*TORCHRUN, "-m", module, "--dataset_name", records, "--pools", records / "pools.jsonl", *vlm, *argv)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    if module != "rollouts.in_context":
        groups = [json.loads(line) for line in (tmp_path / "groups.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [group["id"] for group in groups] == [f"q{number}" for number in range(6)]


@pytest.mark.slow
def test_t20_embeddings_say_once_that_they_need_one_process(records, tmp_path):
    done = launch(
        *TORCHRUN, "-m", "rollouts.embeddings", "--dataset_name", records, "--output", tmp_path / "table.safetensors"
    )
    assert done.returncode == 1
    assert done.stderr.count("error: this command does all its work in one process") == 1
    assert list(tmp_path.iterdir()) == []


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_deepspeed_and_recipe_name_the_same_precision(precision, monkeypatch):
    from types import SimpleNamespace

    off, on = (SimpleNamespace(bf16=value, fp16=value) for value in (False, True))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    check_precision(off)  # without DeepSpeed nothing fails
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    check_precision(on)
    check_precision(SimpleNamespace(bf16=None, fp16=None))  # not yet decided
    with pytest.raises(RecipeError) as error:
        check_precision(off)
    assert str(error.value) == (
        f"{precision}: the recipe says false, and DeepSpeed was launched with mixed_precision: {precision}; set "
        f"{precision}: true, or launch with --mixed_precision no"
    )
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "zero.json")
    check_precision(off)
