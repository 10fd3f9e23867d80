"""What a run does that is resumed with other settings, in the process of the test: rollouts, KL coefficient, learning
rate, frequency of logs; and runs that have ended early, or have nothing left to do."""

import json
import sys
from pathlib import Path

import pytest

REWARDS = """
calls = []


def logged(completions, completion_ids, trainer_state, **columns):
    calls.append((trainer_state.global_step, len(completions)))
    return [sum(ids) / (400 * len(ids)) for ids in completion_ids]
"""
GRPO = {
    "max_pixels": 1024,
    "dtype": "float32",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "reward_funcs": "resume_rewards.logged",
    "num_generations": 4,
    "max_completion_length": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "save_steps": 1,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
SELECTOR = {
    "use_cpu": True,
    "shots": 2,
    "per_device_train_batch_size": 4,
    "max_steps": 5,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "save_steps": 2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "selector": '{"hidden_size": 16, "num_layers": 1, "dropout": 0.5}',
}


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """The module of the reward above."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "resume_rewards.py").write_text(REWARDS, encoding="utf-8")
    sys.path.append(str(folder))
    import resume_rewards

    yield resume_rewards
    sys.path.remove(str(folder))


def arguments(settings: dict) -> list[str]:
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


@pytest.fixture
def grpo(tiny_model, report_data, tmp_path, rewards, monkeypatch):
    """Function: settings -> (optimizer step, completions) of each rollout."""
    from trainers import grpo as script
    from trainers.report import publishing

    monkeypatch.setattr(publishing, "write_report", lambda *args: None)

    def run(**settings) -> list[tuple[int, int]]:
        rewards.calls.clear()
        own = {"model_name_or_path": tiny_model, "dataset_name": report_data, "output_dir": tmp_path / "run"}
        script.main(arguments(GRPO | own | settings))
        return list(rewards.calls)

    return run


@pytest.fixture(scope="module")
def pointers(tmp_path_factory):
    from stored_groups import write_pointer_groups

    return write_pointer_groups(tmp_path_factory.mktemp("pointers"), queries=18)


@pytest.fixture
def selector(pointers, tmp_path, monkeypatch):
    """Function: (trainer, settings) -> what it logged."""
    import importlib

    from trainers.report import publishing

    monkeypatch.setattr(publishing, "write_report", lambda *args: None)

    def run(name: str = "rce", **settings) -> list[dict]:
        tables = {"query_table": pointers / "queries.safetensors", "example_table": pointers / "examples.safetensors"}
        own = {"dataset_name": pointers, "output_dir": tmp_path / "run"}
        importlib.import_module(f"trainers.{name}").main(arguments(SELECTOR | own | tables | settings))
        state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
        return state["log_history"]

    return run


# -- rollouts ---------------------------------------------------------------------------------------------------------

SPLITS = {
    "16 x 1 as 8 x 2": ((16, 1), (8, 2), 3),
    "16 x 1 as 4 x 4": ((16, 1), (4, 4), 1),
    "8 x 2 as 16 x 1": ((8, 2), (16, 1), 3),
}


@pytest.mark.parametrize("name", SPLITS)
def test_t21_other_micro_batches_leave_one_rollout_a_step(grpo, name):
    before, after, step = SPLITS[name]

    def split(rows: int, accumulation: int) -> dict:
        return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}

    assert grpo(**split(*before), max_steps=step) == [(number, 16) for number in range(step)]
    resumed = grpo(**split(*after), max_steps=step + 2, resume="changed")
    assert [number for number, _ in resumed] == [step, step + 1]
    assert sum(count for _, count in resumed) == 32


def test_t22_in_the_middle_of_a_rollout_its_prompts_are_rolled_out_anew(grpo):
    """Its first optimizer step of two is done: the other one learns from new completions, then all is as ever."""
    grpo(per_device_train_batch_size=4, steps_per_generation=2, num_iterations=2, max_steps=1)
    resumed = grpo(per_device_train_batch_size=4, steps_per_generation=4, max_steps=6, resume="changed")
    assert [step for step, _ in resumed] == [1, 4]


def test_t22_fewer_steps_a_generation(grpo):
    grpo(per_device_train_batch_size=4, steps_per_generation=4, max_steps=3)
    resumed = grpo(per_device_train_batch_size=4, steps_per_generation=2, max_steps=6, resume="changed")
    assert [step for step, _ in resumed] == [3, 4]


def test_t22_the_same_layout_goes_on_with_stored_rollouts(grpo):
    grpo(per_device_train_batch_size=4, steps_per_generation=4, max_steps=3)
    resumed = grpo(per_device_train_batch_size=4, steps_per_generation=4, max_steps=5, resume="changed")
    assert [step for step, _ in resumed] == [4]


# -- settings that a checkpoint would bring back ----------------------------------------------------------------------


def stored(folder: Path) -> dict:
    newest = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[-1]
    return json.loads((newest / "posttrain_state.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("changed", [{"beta": 5.0}, {"beta": 0.3, "adaptive_kl": False}, {"adaptive_kl": False}])
def test_t24_another_beta_is_taken(selector, tmp_path, changed):
    kl = {"beta": 0.15, "adaptive_kl": True, "kl_target_min": 0.5, "kl_target_max": 0.6}  # it only falls
    selector("offline_grpo", **kl, max_steps=2)
    assert stored(tmp_path / "run")["beta"] < 0.15
    logged = selector("offline_grpo", **kl | changed, max_steps=3, resume="changed")
    assert [row["beta"] for row in logged if row["step"] == 3 and "beta" in row] == [(kl | changed)["beta"]]


def test_t24_the_same_beta_goes_on_from_where_it_was(selector, tmp_path):
    kl = {"beta": 0.15, "adaptive_kl": True, "kl_target_min": 0.5, "kl_target_max": 0.6}
    selector("offline_grpo", **kl, max_steps=2)
    before = stored(tmp_path / "run")["beta"]
    logged = selector("offline_grpo", **kl, max_steps=3, resume="changed")
    assert [row["beta"] for row in logged if row["step"] == 3 and "beta" in row] == [before]


def test_t24_online_too(grpo, tmp_path):
    kl = {"per_device_train_batch_size": 4, "adaptive_kl": True, "kl_target_min": 0.5, "kl_target_max": 0.6}
    grpo(**kl, beta=0.1, max_steps=2)
    assert stored(tmp_path / "run")["beta"] < 0.1
    grpo(**kl | {"adaptive_kl": False}, beta=0.7, max_steps=3, resume="changed")
    assert stored(tmp_path / "run")["beta"] == 0.7


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_t24_another_learning_rate_is_taken(selector, schedule):
    selector(lr_scheduler_type=schedule, max_steps=2)
    logged = selector(lr_scheduler_type=schedule, max_steps=4, learning_rate=0.5, resume="changed")
    rates = [row["learning_rate"] for row in logged if "learning_rate" in row][2:]
    assert rates == ([0.5, 0.5] if schedule == "constant" else [0.25, 0.125])


def test_t24_another_weight_decay_is_taken(selector, tmp_path):
    import torch

    selector(max_steps=2)
    selector(max_steps=4, weight_decay=0.25, adam_beta1=0.5, resume="changed")
    groups = torch.load(tmp_path / "run" / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"]
    assert groups[0]["weight_decay"] == 0.25
    assert all(group["betas"][0] == 0.5 for group in groups)


def test_t24_other_frequencies_need_no_word_and_hold_at_once(selector, tmp_path):
    selector(max_steps=5, save_steps=2)
    (tmp_path / "run" / "run.json").unlink()  # as if it had been killed at the end
    for step in (4, 5):
        (tmp_path / "run" / f"checkpoint-{step}" / "complete.json").unlink()
    logged = selector(max_steps=5, logging_steps=5, save_steps=1)
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 5]
    folders = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert folders == {"checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-5"}


# -- the end of a run -------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


ENDS = {
    "without checkpoints": {"save_strategy": "no", "max_steps": 3},
    "max_steps": {"max_steps": 3, "save_steps": 2},
    "epochs": {"max_steps": -1, "num_train_epochs": 1, "save_strategy": "epoch"},
    "early": {
        **{"max_steps": 8, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2},
        **{"early_stopping_patience": 1, "learning_rate": 5.0},
    },
    "best alone": {
        **{"max_steps": 3, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1},
        **{"load_best_model_at_end": True},
    },
}


@pytest.mark.parametrize("name", ENDS)
def test_t01_the_command_of_a_finished_run_changes_nothing(selector, tmp_path, capsys, name):
    logged = selector(**ENDS[name])
    before = content(tmp_path / "run")
    capsys.readouterr()
    selector(**ENDS[name])
    assert content(tmp_path / "run") == before
    assert f"already finished: the run in {tmp_path / 'run'} ended after step {logged[-1]['step']}" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["max_steps", "epochs", "early"])
def test_t01_killed_after_the_last_checkpoint_it_ends_as_it_would_have(selector, tmp_path, name):
    logged = selector(**ENDS[name])
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert name != "early" or logged[-1]["step"] < 8
    for file in ("run.json", "model.safetensors", "trainer_state.json"):
        (tmp_path / "run" / file).unlink()
    again = selector(**ENDS[name])
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    clock = ("runtime", "per_second")
    assert [[{k: v for k, v in row.items() if not k.endswith(clock)} for row in rows] for rows in (logged, again)] == [
        [{k: v for k, v in row.items() if not k.endswith(clock)} for row in logged]
    ] * 2


def test_t01_a_longer_run_is_asked_for(selector, tmp_path, capsys):
    selector(max_steps=3)
    with pytest.raises(SystemExit):
        selector(max_steps=6)
    assert "  max_steps: was 3, is 6\n" in capsys.readouterr().err
    logged = selector(max_steps=6, resume="changed")
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("value", ["chnaged", "2", "null"])
def test_t10_resume_is_read_strictly(selector, capsys, value):
    with pytest.raises(SystemExit):
        selector(resume=value)
    assert f"resume: expected true, false or changed, found '{value}'" in capsys.readouterr().err


def test_t26_weights_alone_are_not_resumed(selector, tmp_path, capsys):
    selector(max_steps=2, save_only_model=True)
    assert "note: save_only_model: checkpoints hold weights alone" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        selector(max_steps=4, save_only_model=True, resume="changed")
    assert "holds weights without optimizer, schedule and random state" in capsys.readouterr().err


def test_t10_offline_grpo_cannot_go_on_with_other_groups(selector, pointers, tmp_path, capsys):
    selector("offline_grpo", max_steps=2)
    other = tmp_path / "other"
    other.mkdir()
    lines = (pointers / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (other / "train.jsonl").write_text("".join(reversed(lines)), encoding="utf-8")
    with pytest.raises(SystemExit):
        selector("offline_grpo", max_steps=4, dataset_name=other, resume="changed")
    assert "has log-probabilities of other candidates" in capsys.readouterr().err
