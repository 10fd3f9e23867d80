"""`vlm-posttrain doctor`: its table, its file and its status, of recipes as a user gives them."""

import json
from pathlib import Path

import pytest
from tiny_recipes import write_grpo_recipe

from trainers import doctor
from trainers.doctor import DoctorArguments


@pytest.fixture(scope="module")
def recipe(tiny_model, report_data, tmp_path_factory) -> Path:
    return write_grpo_recipe(tmp_path_factory.mktemp("recipe"), tiny_model, report_data)


def test_a_sound_recipe(recipe, run_warm, tmp_path):
    done = run_warm("-m", "trainers.doctor", "--config", recipe, "--limit", 2, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the update sees what it should" in done.stdout
    assert not (recipe.parent / "run").exists()
    findings = json.loads((tmp_path / "out" / "doctor.json").read_text(encoding="utf-8"))["findings"]
    assert [finding for finding in findings if finding["verdict"] not in ("ok", "note")] == []
    assert all(
        finding["check"] in " ".join(done.stdout.split()) for finding in findings if " " not in finding["check"]
    )


def test_a_cut_of_the_recipe_is_named_with_its_remedy(recipe, run_warm):
    done = run_warm("-m", "trainers.doctor", "--config", recipe, "--limit", 2, "--set", "top_p=0.8", "use_cpu=true")
    assert done.returncode == 1, done.stderr
    assert "WRONG" in done.stdout
    assert "top-p" in done.stdout
    assert "set top_p: 1.0" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "top_p"], "--set: expected KEY=VALUE, found 'top_p'"),
        (["--set", "top_q=1"], "unknown key 'top_q'"),
        (
            ["--set", "reward_funcs=vqa_accuracy"],
            "row 'train-00000': reward 'vqa_accuracy' needs the column 'answers'",
        ),
        (["--limit", "0"], "--limit"),
        (["--method", "sft", "--backend", "vllm"], "--backend: sft samples nothing; leave it out"),
        (["--backend", "recipes"], "--backend: recipes is a folder; expected a file in it"),
        (["--backend", "vlm"], "--backend: expected transformers, vllm or a file of completions, found 'vlm'"),
    ],
)
def test_what_cannot_be_is_said_at_once(words, message, recipe, run_warm):
    done = run_warm("-m", "trainers.doctor", "--config", recipe, *words)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "backend", "words"),
    [
        ({"set": ("use_vllm=True",)}, "vllm", []),
        ({"backend": "vllm"}, "vllm", ["--use_vllm", "true"]),
        ({"set": ("vllm_kwargs={}",)}, "transformers", ["--vllm_kwargs", "{}"]),
        ({}, "transformers", []),
    ],
)
def test_the_trainer_samples_with_what_the_doctor_looks_at(given, backend, words, recipe, monkeypatch):
    monkeypatch.setattr(doctor, "findings_of", lambda method, words, backend, limit: [(backend.name, words)])
    arguments = DoctorArguments(config=recipe, **given)
    assert list(doctor.find(arguments)) == [(backend, arguments.command_line() + words)]
