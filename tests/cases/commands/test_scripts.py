"""T10, T12: scripts of several commands, begun again in the same folder: with the same seed they go on, with another
one or while the first still runs they end before anything is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

SCRIPTS = [
    "pipelines/factor_agents.sh",
    "pipelines/factors.sh",
    "pipelines/judge.sh",
    "pipelines/quickstart.sh",
    "pipelines/reward.sh",
    "pipelines/selector.sh",
]
GO_ON = f"source {ROOT}/pipelines/begin.sh; begin $1 $2"


def _begin(folder: Path, seed: int, then: str = "true") -> subprocess.CompletedProcess:
    command = ["bash", "-euc", f"{GO_ON}; {then}", "quickstart.sh", str(seed), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_no_script_is_forgotten():
    found = (str(path.relative_to(ROOT)) for path in ROOT.glob("**/*.sh"))
    assert sorted(path for path in found if not path.startswith(".venv")) == sorted([*SCRIPTS, "pipelines/begin.sh"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_t10_another_seed_in_the_same_folder_is_refused_before_anything_is_written(tmp_path, script):
    name = Path(script).name
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".script").write_text(f"{name} with seed 0\n", encoding="utf-8")
    done = subprocess.run(
        ["bash", script, "1", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == (
        f"error: {tmp_path}/out holds what {name} with seed 0 made, and this is {name} with seed 1; "
        "choose another OUTPUT_DIR (OUT of make), or remove it\n"
    )
    assert done.returncode == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".script", ".script.lock"]


def test_t10_the_same_seed_goes_on(tmp_path):
    for _ in range(2):
        assert _begin(tmp_path / "out", 0, "echo begun").stdout == "begun\n"
    assert _begin(tmp_path / "out", 1).returncode == 1
    assert _begin(tmp_path / "out", 0).returncode == 0


def test_t10_another_family_in_the_same_folder_is_refused(tmp_path):
    def begin(*family: str) -> subprocess.CompletedProcess:
        line = f"source {ROOT}/pipelines/begin.sh; begin 0 {tmp_path} {' '.join(family)}"
        return subprocess.run(["bash", "-euc", line, "quickstart.sh"], capture_output=True, text=True, timeout=60)

    assert begin().returncode == begin("qwen2_vl").returncode == 0
    refused = begin("qwen3_vl")
    assert refused.returncode == 1
    assert (
        "quickstart.sh with seed 0 made, and this is quickstart.sh with seed 0 and FAMILY=qwen3_vl" in refused.stderr
    )


FAMILIES = sorted(path.stem for path in (ROOT / "pipelines" / "families").iterdir())


@pytest.mark.parametrize("family", ["qwen4", "../families/qwen3_vl", "Qwen3_VL", "qwen3_vl "])
def test_the_quick_start_knows_no_such_family(tmp_path, family):
    done = subprocess.run(
        ["bash", "pipelines/quickstart.sh", "0", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"FAMILY": family},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == f"error: FAMILY: expected one of {' '.join(FAMILIES)}, found '{family}'\n"
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (1, "", [])


def test_rewards_of_an_unknown_family_end_before_anything_is_written(tmp_path):
    command = ["bash", "pipelines/reward.sh", "0", str(tmp_path / "out")]
    given = os.environ | {"FAMILY": "qwen4", "TMPDIR": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=60)
    assert "--family: invalid choice: 'qwen4'" in done.stderr
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_trainings_of_qwen3_5_depart_from_the_recipes(tmp_path, family):
    """With programs that write down how they are called in the place of the real ones."""
    for program in ("python", "accelerate"):
        stub = tmp_path / "bin" / program
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/{program}.txt\n', encoding="utf-8")
        stub.chmod(0o755)
    subprocess.run(
        ["bash", "pipelines/quickstart.sh", "0", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"FAMILY": family, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        timeout=60,
    )
    out = tmp_path / "out"
    sft, grpo = (
        line.partition(f" --output_dir {out}/")[2] for line in (tmp_path / "accelerate.txt").read_text().splitlines()
    )
    if family == "qwen3_5":
        assert sft == "sft --learning_rate 1.5e-3"
        assert grpo == "grpo --learning_rate 1.5e-4 --max_grad_norm 0.1"
    else:
        assert (sft, grpo) == ("sft", "grpo")


def test_make_names_the_families_before_it_makes_an_environment():
    def plan(family: str) -> subprocess.CompletedProcess:
        command = ["make", "--dry-run", "run", f"FAMILY={family}"]
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, timeout=60)

    assert f"FAMILY: expected one of {' '.join(FAMILIES)}, found 'qwen4'" in plan("qwen4").stderr
    assert plan("qwen4").stdout == ""
    assert "FAMILY=qwen3_vl ./pipelines/quickstart.sh 0 outputs" in plan("qwen3_vl").stdout


def test_families_of_the_quick_start_have_tiny_models():
    from models.tiny import FAMILIES as TINY

    assert set(FAMILIES) <= set(TINY)
    assert "qwen2_vl" in FAMILIES


def test_t12_two_scripts_at_once(tmp_path):
    command = ["bash", "-euc", f"{GO_ON}; echo begun; read", "quickstart.sh", "0", str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "begun\n"
        second = _begin(tmp_path / "out", 0)
        first.stdin.write("\n")
    assert second.returncode == 1
    assert (
        f"error: {tmp_path}/out: process {first.pid} on {os.uname().nodename} has been writing to it" in second.stderr
    )
    assert second.stderr.count("\n") == 1
    assert _begin(tmp_path / "out", 0).returncode == 0
