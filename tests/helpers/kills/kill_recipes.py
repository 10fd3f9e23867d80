"""Every trainer as a small run with a constant learning rate, for the tests that kill it (kill_worker.py)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from places import KILLS, ROOT
from report_agents import AGENT_NAMES
from safetensors.torch import load_file

WORKER = KILLS / "kill_worker.py"
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "lr_scheduler_type": "constant",
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
}
VLM = {"dtype": "float32", "max_pixels": 1024, "gradient_checkpointing": False, "learning_rate": 1e-3}
STORED = {"per_device_train_batch_size": 4, "max_steps": 7, "learning_rate": 1e-2}
SELECTOR = {"selector": {"hidden_size": 16, "num_layers": 1, "dropout": 0.5}, "shots": [2]}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2, "early_stopping_patience": 50}
REWARD = '''
def letters(completions, completion_ids, **columns):
    """Without contrast now and then, so that groups are drawn anew."""
    values = [sum(ids) / (400 * len(ids)) for ids in completion_ids]
    return [0.5] * len(values) if sum(map(sum, completion_ids)) % 3 == 0 else values
'''
CLOCK = ("runtime", "per_second", "step_time")


def write_data(folder: Path, report_data: Path, rows: list[dict]) -> dict[str, Path]:
    """Data of every kind, small."""
    from factor_runs import write_labelled
    from preference_runs import write_preferences
    from stored_groups import write_completion_groups, write_pointer_groups

    folder.mkdir(parents=True)
    (folder / "my_rewards.py").write_text(REWARD, encoding="utf-8")
    return {
        "folder": folder,
        "reports": report_data,
        "pointers": write_pointer_groups(folder / "pointers", queries=18),
        "completions": write_completion_groups(folder / "completions", rows[:6], without_image=[1]),
        "preferences": write_preferences(folder / "preferences"),
        "labelled": write_labelled(folder / "labelled", pictures=16),
    }


def recipes(data: Mapping[str, Path], model: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Kind -> training script and recipe."""
    from factor_runs import BACKBONE

    tables = {name: str(data["pointers"] / f"{part}.safetensors") for name, part in _TABLES.items()}
    pointers = COMMON | STORED | SELECTOR | EVALUATES | {"dataset_name": str(data["pointers"])} | tables
    vlm = COMMON | VLM | {"model_name_or_path": str(model)}
    reports = vlm | {"dataset_name": str(data["reports"]), "agents": AGENT_NAMES, "per_device_train_batch_size": 4}
    stored = vlm | {"dataset_name": str(data["completions"]), "policy": "vlm", "per_device_train_batch_size": 3}
    adaptive = {"curriculum_top_k": 1, "curriculum_share": 0.6, "kl_target_max": 0.001, "kl_target_min": 0.0001}
    grpo = {
        "dataset_train_split": "validation",
        "reward_funcs": ["my_rewards.letters"],
        "steps_per_generation": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "rollout_drafts": 4,
        "max_steps": 5,
        "beta": 0.05,
        "adaptive_kl": True,
        "kl_target_min": 0.0,
        "kl_target_max": 0.001,
        "dynamic_sampling_rounds": 1,
        "save_steps": 1,
    }
    pairs = {
        "dataset_name": str(data["preferences"]),
        "own_folder": False,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 5,
        "lm_loss_weight": 0.5,
    }
    factors = {
        "dataset_name": str(data["labelled"]),
        "backbone": BACKBONE,
        "image_size": 32,
        "head_size": 16,
        "head_dropout": 0.2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "max_steps": -1,
        "save_steps": 3,
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
    }
    return {
        "grpo": ("grpo", reports | grpo),
        "sft": ("sft", reports | {"max_steps": 5}),
        "sft_selector": ("sft", pointers | {"policy": "selector"}),
        "rce": ("rce", pointers | {"save_steps": 3, "eval_steps": 3, "logging_steps": 2}),
        "rce_vlm": ("rce", stored | {"max_steps": 3, "save_strategy": "epoch", "logging_strategy": "epoch"}),
        "offline_grpo": ("offline_grpo", pointers | adaptive | {"policy": "selector"}),
        "offline_grpo_vlm": ("offline_grpo", stored | {"max_steps": 3}),
        "reward": ("reward", vlm | pairs),
        "factors": ("factors", COMMON | factors),
    }


_TABLES = {"query_table": "queries", "example_table": "examples"}


def run_and_kill(
    folder: Path, runs: Mapping[str, tuple[str, dict[str, Any]]], kills: int, seed: int, run_warm: Callable
) -> dict[str, dict[str, Any]]:
    """What `kill_worker.try_kind` found, by kind."""
    listed = {kind: {"script": script, "recipe": recipe, "kills": kills} for kind, (script, recipe) in runs.items()}
    settings, results = folder / "settings.json", folder / "results.json"
    content = {"runs": listed, "folder": str(folder / "runs"), "seed": seed, "results": str(results)}
    settings.write_text(json.dumps(content), encoding="utf-8")
    path = ":".join(map(str, (ROOT, WORKER.parent, folder / "data", folder.parent / "data")))
    done = run_warm(WORKER, settings, PYTHONPATH=path, timeout=4 * 3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(results.read_text(encoding="utf-8"))


def check_kind(found: dict[str, Any], late: int) -> None:
    """Checks that every killed run ended as the undisturbed one, and was left alone from then on.

    Args:
        late: so many kills at least came after the last checkpoint.
    """
    assert found["status"] == 0, found["log"][-3000:]
    expected = Path(found["folder"])
    assert sum(kill["moment"] > found["moments"]["last_checkpoint"] for kill in found["kills"]) >= late
    for kill in found["kills"]:
        folder = Path(kill["folder"])
        assert kill["statuses"] == [-9, 0, 0], kill["log"][-3000:]
        assert kill["unchanged"], folder
        assert "already finished" in kill["log"]
        check_equal(expected, folder)


def check_equal(expected: Path, found: Path) -> None:
    """Weights, history and further results, bit for bit."""
    one, other = (load_file(folder / "model.safetensors") for folder in (expected, found))
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == [], found
    assert history(found) == history(expected), found
    results = [folder / "factor_results.json" for folder in (expected, found)]
    assert len({path.read_text() for path in results if path.is_file()}) <= 1


def history(folder: Path) -> list[dict]:
    """What was logged, without the clock."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [{key: value for key, value in row.items() if not key.endswith(CLOCK)} for row in state["log_history"]]
