"""What must be found wrong with a recipe before anything is trained or written, each by its own message."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "trainers"))
from factor_runs import write_labelled
from preference_runs import write_preferences
from stored_groups import write_completion_groups, write_pointer_groups

from trainers.evaluation_rows import count_shared, hold_out, prompt_content

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


@pytest.fixture
def run(tiny_model, tmp_path, capsys, monkeypatch):
    """Function: method and keys of a recipe -> exit status and what was printed; nothing may have been written."""
    monkeypatch.setattr(sys, "argv", ["trainer"])

    def start(method: str, **keys) -> tuple[int, str]:
        output = tmp_path / "never" / "made"
        defaults = {"output_dir": str(output), "use_cpu": True, "bf16": False, "validate_only": True}
        defaults |= {"model_name_or_path": str(tiny_model)} | KEYS[method](tmp_path)
        recipe = tmp_path / "recipe.yaml"
        given = {key: value for key, value in (defaults | keys).items() if value != "leave out"}
        recipe.write_text(json.dumps(given), encoding="utf-8")
        status = 0
        try:
            importlib.import_module(f"trainers.{method}").main(["--config", str(recipe)])
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        assert not output.parent.exists()
        return status, printed.out + printed.err

    return start


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


@pytest.mark.parametrize("method", METHODS)
def test_a_right_recipe_is_valid(run, method):
    status, printed = run(method, **EVALUATES)
    assert status == 0, printed
    assert printed.splitlines()[-1] == "valid"


# -- N2: what is evaluated on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grpo", "sft", "rce", "offline_grpo", "reward"])
def test_n02_one_file_is_not_evaluated_on(run, tmp_path, method):
    file = Path(KEYS[method](tmp_path)["dataset_name"]) / "train.jsonl"
    message = refusal(run(method, dataset_name=str(file), **EVALUATES))
    assert message.startswith(f"error: eval_strategy: {file} is one file without splits, all of which is trained on")
    assert "eval_dataset_name" in message
    assert "eval_share" in message


@pytest.mark.parametrize("method", METHODS)
def test_n02_the_training_split_is_not_evaluated_on(run, method):
    message = refusal(run(method, dataset_test_split="train", **EVALUATES))
    assert message.startswith("error: dataset_test_split: 'train' is also the split that is trained on")


@pytest.mark.parametrize("method", METHODS)
def test_n02_equal_content_under_another_name_is_not_evaluated_on(run, tmp_path, method):
    folder = Path(KEYS[method](tmp_path)["dataset_name"])
    copy = folder / "copy.jsonl"
    copy.write_text((folder / "train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    message = refusal(run(method, eval_dataset_name=str(copy), **EVALUATES))
    assert "have the prompt and images of a training row; it must be on other rows" in message
    assert str(copy) in message


@pytest.mark.parametrize("method", METHODS)
def test_n02_another_file_is_evaluated_on(run, tmp_path, method):
    folder = Path(KEYS[method](tmp_path)["dataset_name"])
    other = (folder / "validation.jsonl").rename(folder / "other.jsonl")
    train = folder if method == "factors" else folder / "train.jsonl"
    status, printed = run(method, dataset_name=str(train), eval_dataset_name=str(other), **EVALUATES)
    assert status == 0, printed


@pytest.mark.parametrize("method", METHODS)
def test_n02_a_share_is_held_out(run, tmp_path, method):
    folder = Path(KEYS[method](tmp_path)["dataset_name"])
    train = folder if method == "factors" else folder / "train.jsonl"
    status, printed = run(method, dataset_name=str(train), eval_share=0.25, **EVALUATES)
    assert status == 0, printed
    assert "held out to evaluate on: " in printed


def test_n02_a_final_split_that_is_trained_on(run):
    assert "have the prompt and images of a training row" in refusal(run("factors", dataset_final_split="train"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval_share": 0.5}, "eval_share: nothing is evaluated with eval_strategy: no"),
        ({"eval_dataset_name": "x.jsonl"}, "eval_dataset_name: nothing is evaluated with eval_strategy: no"),
        ({"eval_share": 1.0, **EVALUATES}, "eval_share: expected a number between 0 and 1, found 1.0"),
        ({"eval_share": 0.5, "eval_dataset_name": "x", **EVALUATES}, "both say what is evaluated on"),
    ],
)
def test_n02_keys_that_contradict_each_other(run, keys, message):
    assert message in refusal(run("grpo", **keys))


def _row(text: str, *images) -> dict:
    return {"prompt": [{"role": "user", "content": text}], "images": list(images)}


def test_n02_rows_that_belong_together_stay_on_one_side(tmp_path):
    paths = []
    for number in range(6):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(paths[-1])
    Image.open(paths[0]).save(tmp_path / "again.bmp")
    rows = [_row(f"{asked} {path}", path) for path in paths for asked in ("what", "where")]
    rows += [_row("another", str(tmp_path / "again.bmp")), _row("text"), _row("text"), _row("other")]
    for seed in range(20):
        train, held_out = hold_out(rows, 0.3, seed, prompt_content)
        assert len(train) + len(held_out) == len(rows)
        assert 3 <= len(held_out) <= 5
        of_train = {image for row in train for image in row["images"]} | {row["prompt"][0]["content"] for row in train}
        assert not [row for row in held_out for image in row["images"] if image in of_train]
        assert ("text" in of_train) != any(row["prompt"][0]["content"] == "text" for row in held_out)
        assert (paths[0] in of_train) == (str(tmp_path / "again.bmp") in of_train)
    assert hold_out(rows, 0.3, 7, prompt_content) == hold_out(rows, 0.3, 7, prompt_content)
    assert len({str(hold_out(rows, 0.3, seed, prompt_content)[1]) for seed in range(20)}) > 5


def test_n02_pictures_are_compared_by_what_they_show(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "same.bmp")
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "blue.png")
    red, same, blue = (str(tmp_path / name) for name in ("red.png", "same.bmp", "blue.png"))
    held_out = [_row("what", same), _row("what", blue), _row("where", red), _row("what", Image.open(red))]
    assert count_shared([_row("what", red)], held_out, prompt_content) == 2


def test_n02_a_few_shared_rows_are_told_and_allowed(run, tmp_path):
    folder = Path(_grpo(tmp_path)["dataset_name"])
    rows = chat_rows(1) + chat_rows(3, "tell")
    write_rows(folder / "mixed.jsonl", rows)
    status, printed = run("grpo", eval_dataset_name=str(folder / "mixed.jsonl"), **EVALUATES)
    assert status == 0
    assert "note: 1 of 4 rows of " in printed


# -- P4: a table for each split ---------------------------------------------------------------------------------------


@pytest.fixture
def two_tables(tmp_path):
    """Groups whose validation queries have ids that the training queries have too, and a table of their own."""
    train = write_pointer_groups(tmp_path / "train", queries=6, seed=0)
    other = write_pointer_groups(tmp_path / "other", queries=9, seed=1)
    return {
        "dataset_name": str(train / "train.jsonl"),
        "eval_dataset_name": str(other / "train.jsonl"),
        "query_table": str(train / "queries.safetensors"),
        "eval_query_table": str(other / "queries.safetensors"),
        "example_table": str(train / "examples.safetensors"),
    }


@pytest.mark.parametrize("method", ["rce", "offline_grpo", "sft"])
def test_p04_a_table_for_each_split(run, two_tables, method):
    selector = {"policy": "selector", "model_name_or_path": "leave out", "selector": {"hidden_size": 8}}
    status, printed = run(method, **selector, **two_tables, **EVALUATES)
    assert status == 0, printed
    without = two_tables | {"eval_query_table": "leave out"}
    assert "have the prompt and images of a training row" in refusal(run(method, **selector, **without, **EVALUATES))


def test_p04_each_query_has_the_embedding_of_its_own_table(two_tables):
    from data.embedding_table import EmbeddingTable
    from trainers.group_data import GroupArguments, HeldOutId
    from trainers.group_runs import load_query_table

    keys = {name: value for name, value in two_tables.items() if name != "example_table"}
    table = load_query_table(GroupArguments(**keys))
    for name, key in (("query_table", lambda query: query), ("eval_query_table", HeldOutId)):
        own = EmbeddingTable.load(two_tables[name])
        for query in (0, 3, 5):
            assert (table.values[table.rows([key(query)])] == own.values[own.rows([query])]).all()


def test_p04_tables_of_other_encoders(run, two_tables, tmp_path):
    import numpy as np

    from data.embedding_table import EmbeddingTable

    EmbeddingTable([0], np.ones((1, 3), dtype=np.float32)).save(tmp_path / "narrow.safetensors")
    keys = two_tables | {"eval_query_table": str(tmp_path / "narrow.safetensors")}
    assert "eval_query_table: embeddings: two tables made by different encoders" in refusal(
        run("rce", **keys, **EVALUATES)
    )


def test_p04_a_vlm_has_no_tables(run, tmp_path):
    rows = [{"prompt": row["prompt"], "gold": "an answer of some words", "images": []} for row in chat_rows(2)]
    groups = write_completion_groups(tmp_path / "completions", rows)
    keys = {"policy": "vlm", "dataset_name": str(groups), "eval_query_table": "x", "query_table": "leave out"}
    message = refusal(run("rce", **keys, example_table="leave out", selector="leave out", **EVALUATES))
    assert "eval_query_table: only policy: selector reads it" in message
