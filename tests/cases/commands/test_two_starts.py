"""T12: two starts at once in one place, of every program that writes: one works, the other says who holds it.

The programs are found by looking: none can be forgotten here.
"""

import ast
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from programs import programs

WRITES_NOTHING = {
    "rewards.validate",
    "vlm_posttrain.__main__",
    "vlm_posttrain.environment",
    "vlm_posttrain.accelerate_process",
    "vlm_posttrain.recipes",  # but for a copy, whole and at once
}
CPU = " --use_cpu true --bf16 false"
WITHOUT_DATA = {
    "data.agent_selection": "--dataset_name x --output_dir RUN",
    "data.annotators": "--dataset_name x --output_dir RUN",
    "data.candidate_groups": "--dataset_name x --output ROWS",
    "data.dialects": "--output_dir RUN",
    "data.easy_factors": "--kind damages --output_dir RUN",
    "data.factors": "--dataset_name x --output_dir RUN",
    "data.preferences": "--source easy_vqa --output_dir RUN",
    "data.quality_reports": "--source easy_vqa --output_dir RUN",
    "data.vqa": "--source easy_vqa --output_dir RUN",
    "models.convert_selector": "--checkpoint x --output_dir RUN",
    "models.tiny": "--output_dir RUN",
    "rollouts.compare_factors": "--dataset_name x --predictors a=x --routing x --output_dir RUN",
    "rewards.eval": "--dataset_name x --rewards xml_format --output_dir RUN",
    "rewards.judging.__main__": "rows --dataset_name x --output_dir RUN",
    "rewards.reward_bench": "--model x --dataset_name x --output_dir RUN",
    "rewards.score": "--model x --dataset_name x --output ROWS",
    "rollouts.beams": "--dataset_name x --pools x --model x --output ROWS",
    "rollouts.candidates": "--dataset_name x --pools x --model x --output ROWS",
    "rollouts.completions": "--dataset_name x --model x --output ROWS",
    "rollouts.embeddings": "--dataset_name x --text_encoder x --output ROWS",
    "rollouts.factor_reports": "--dataset_name x --factors x --output_dir RUN",
    "rollouts.factor_routing": "run --pool x --model x --routing x --output ROWS",
    "rollouts.filter_dataset": "--dataset_name x --model x --output ROWS",
    "rollouts.in_context": "--dataset_name x --model x --pool_size 1 --methods random --output_dir RUN",
    "rollouts.pools": "--dataset_name x --sampler random --output ROWS",
    "trainers.doctor": "--config x --output_dir RUN",
    "trainers.factors": "--dataset_name x --output_dir RUN",
    "trainers.grpo": "--dataset_name x --model_name_or_path x --reward_funcs xml_format --output_dir RUN" + CPU,
    "models.tiny_reader": "--output_dir RUN",
    "trainers.offline_grpo": "--dataset_name x --policy selector --output_dir RUN",
    "trainers.rce": "--dataset_name x --policy selector --output_dir RUN",
    "trainers.report.__main__": "--output_dir RUN",
    "trainers.reward": "--dataset_name x --model_name_or_path x --own_folder false --output_dir RUN" + CPU,
    "trainers.sft": "--dataset_name x --model_name_or_path x --output_dir RUN" + CPU,
}
"""Module -> a command line whose data and models do not exist: a program that looks for them first fails otherwise."""
OTHER_WAYS = [
    ("rewards.eval", "--compare x x --output_dir RUN"),
    ("rewards.judging.__main__", "figures --completions x --output_dir RUN"),
    ("rewards.reward_bench", "--scores x --output_dir RUN"),
    ("rollouts.factor_routing", "suggest --model x --output ROWS"),
    ("trainers.sft", "--dataset_name x --policy selector --output_dir RUN"),
    ("trainers.offline_grpo", "--dataset_name x --policy vlm --model_name_or_path x --output_dir RUN"),
    ("trainers.rce", "--dataset_name x --policy vlm --model_name_or_path x --output_dir RUN"),
]


def test_t12_no_program_is_forgotten():
    assert sorted(WITHOUT_DATA.keys() | WRITES_NOTHING) == sorted(programs())
    for module in WRITES_NOTHING:
        assert "--output" not in Path(ROOT, *module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


def test_t15_every_program_ends_with_one_message():
    """`@command`, or what training scripts have in its place: no user's error and no Ctrl-C is a traceback."""
    for module, main in programs().items():
        decorators = {ast.unparse(getattr(decorator, "func", decorator)) for decorator in main.decorator_list}
        blocks = {ast.unparse(item) for node in main.body if isinstance(node, ast.With) for item in node.items}
        assert "command" in decorators or "readable_errors()" in blocks, module


@pytest.fixture(scope="module")
def held(holder, tmp_path_factory):
    """A folder `run` and a file `rows.jsonl` that another process holds, and that process."""
    folder = tmp_path_factory.mktemp("held")
    (folder / "run").mkdir()
    (folder / "run" / "kept.txt").write_text("kept", encoding="utf-8")
    (folder / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    return folder, holder(folder / "run", folder / "rows.jsonl")


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("module", "line"), [*WITHOUT_DATA.items(), *OTHER_WAYS], ids=lambda text: text.split()[0])
def test_t12_the_second_start_says_who_holds_it(held, monkeypatch, capsys, module, line):
    folder, process = held
    monkeypatch.chdir(folder)
    output = folder / ("run" if "RUN" in line else "rows.jsonl")
    before = _content(folder)
    with pytest.raises(SystemExit) as found:
        importlib.import_module(module).main(line.replace("RUN", str(output)).replace("ROWS", str(output)).split())
    message = found.value.code if isinstance(found.value.code, str) else capsys.readouterr().err
    assert message.startswith(
        f"error: {output}: process {process.pid} on {socket.gethostname()} has been writing to it since 20"
    )
    assert message.strip().endswith("wait for it, end it, or choose another output")
    assert "\n" not in message.strip()
    assert found.value.code != 0
    assert _content(folder) == before


SFT = {"max_steps": 3, "max_pixels": 1024, "dtype": "float32", "save_strategy": "no", "report_to": "none"}


def _commands(model: Path, data: Path) -> dict[str, list[str | Path]]:
    """Name -> command without its output; each takes some seconds when it has started."""
    options = [part for name, value in SFT.items() for part in (f"--{name}", str(value))]
    cpu = ["--use_cpu", "true", "--bf16", "false"]
    rewards = ["--rewards", "xml_format", "--num_completions", "4", "--temperature", "1"]
    return {
        "reports": ["-m", "data.quality_reports", "--source", "easy_vqa", "--reports", "200", "--output_dir"],
        "completions": ["-m", "rollouts.completions", "--dataset_name", data, "--model", model, *rewards, "--output"],
        "sft": [
            *("trainers/sft.py", "--model_name_or_path", model, "--dataset_name", data, *options, *cpu),
            "--output_dir",
        ],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reports", "completions", "sft"])
def test_t12_of_two_real_starts_one_works(tiny_model, report_data, tmp_path, name):
    command = _commands(tiny_model, report_data)[name]
    output = tmp_path / "out.jsonl"
    both = [
        subprocess.Popen(
            [sys.executable, *map(str, command), str(output)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], errors
    [loser] = [number for number, process in enumerate(both) if process.returncode]
    winner = both[1 - loser]
    said = [line for line in errors[loser].splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert f"{output}: process {winner.pid} on {socket.gethostname()} has been writing to it since 20" in said[0]
    assert "Traceback" not in errors[loser]
    assert output.exists()
    assert not list(tmp_path.glob(".*.lock"))
