"""Small recipes of every method, rows for them, and the message of one that is refused."""

import json
from pathlib import Path

from factor_runs import write_labelled
from preference_runs import write_preferences
from stored_groups import write_pointer_groups

METHODS = ("grpo", "sft", "rce", "offline_grpo", "reward", "factors")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat_rows(count: int = 6, word: str = "say") -> list[dict]:
    return [
        {"prompt": [{"role": "user", "content": f"{word} {number}"}], "completion": str(number), "answer": "x"}
        for number in range(count)
    ]


def refusal(found: tuple[int, str]) -> str:
    """The only message of a run that was refused."""
    status, printed = found
    assert status == 1, printed
    assert "Traceback" not in printed
    return printed[printed.index("error: ") :].strip()


def _grpo(folder: Path) -> dict:
    source = write_rows(folder / "rows" / "train.jsonl", chat_rows())
    write_rows(folder / "rows" / "validation.jsonl", chat_rows(4, "tell"))
    return {"dataset_name": str(source.parent), "reward_funcs": ["strict_xml_format"], "num_generations": 2}


def _sft(folder: Path) -> dict:
    return {"dataset_name": _grpo(folder)["dataset_name"]}


def _groups(folder: Path) -> dict:
    groups = write_pointer_groups(folder / "groups", queries=6)
    tables = {f"{name}_table": str(groups / f"{plural}.safetensors")
              for name, plural in (("query", "queries"), ("example", "examples"))}  # fmt: skip
    return {"dataset_name": str(groups), "model_name_or_path": "leave out", "selector": {"hidden_size": 8}, **tables}


def _reward(folder: Path) -> dict:
    return {"dataset_name": str(write_preferences(folder / "preferences", rows=8)), "own_folder": False}


def _factors(folder: Path) -> dict:
    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    labelled = write_labelled(folder / "labelled", pictures=8)
    return {"dataset_name": str(labelled), "model_name_or_path": "leave out", "backbone": backbone}


KEYS = {"grpo": _grpo, "sft": _sft, "rce": _groups, "offline_grpo": _groups, "reward": _reward, "factors": _factors}
"""What a valid recipe of each method says of its data and model."""
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}
