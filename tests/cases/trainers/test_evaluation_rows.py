"""What a run is evaluated on: never rows that are trained on, each mistake by its own message."""

from pathlib import Path

import pytest
from PIL import Image
from refused_recipes import EVALUATES, KEYS, METHODS, chat_rows, refusal, write_rows
from stored_groups import write_completion_groups, write_pointer_groups

from trainers.setup.evaluation_rows import hold_out, prompt_content, unseen_rows

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
        ({"eval_share": 1.0, **EVALUATES}, "key 'eval_share': expected a number from above 0 to below 1, found 1.0"),
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
    assert len(unseen_rows([_row("what", red)], held_out, prompt_content)) == len(held_out) - 2


@pytest.mark.parametrize(
    ("prompt", "shared"),
    [
        ("un café rouge", 1),
        ([{"role": "user", "content": " Un\tcafe\u0301 \n rouge"}], 1),
        ([{"role": "user", "content": [{"type": "text", "text": "un café rouge"}]}], 1),
        ([{"role": "user", "content": [{"type": "text", "text": "un café "}, {"type": "text", "text": "rouge"}]}], 1),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "un café rouge"}]}], 1),
        ([{"role": "user", "content": "un café rouge", "name": None}], 1),
        ([{"role": "user", "content": "un café rouge?"}], 0),
        ([{"role": "user", "content": "un cafe rouge"}], 0),
        ([{"role": "user", "content": "uncafé rouge"}], 0),
        ([{"role": "system", "content": "un"}, {"role": "user", "content": "café rouge"}], 0),
        ([{"role": "system", "content": ""}, {"role": "user", "content": "un café rouge"}], 0),
    ],
)
def test_n02_a_prompt_is_the_same_however_it_is_written(prompt, shared):
    picture = Image.new("RGB", (16, 16), "red")
    held_out = [{"prompt": prompt, "images": [picture]}]
    assert len(unseen_rows([_row("un café rouge", picture)], held_out, prompt_content)) == len(held_out) - shared


def test_n02_a_few_shared_rows_are_told_and_allowed(run, tmp_path):
    folder = Path(KEYS["grpo"](tmp_path)["dataset_name"])
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
    from data.candidates.embedding_table import EmbeddingTable
    from trainers.groups.arguments import GroupArguments
    from trainers.groups.data import HeldOutId
    from trainers.groups.selectors import load_query_table

    keys = {name: value for name, value in two_tables.items() if name != "example_table"}
    table = load_query_table(GroupArguments(**keys))
    for name, key in (("query_table", lambda query: query), ("eval_query_table", HeldOutId)):
        own = EmbeddingTable.load(two_tables[name])
        for query in (0, 3, 5):
            assert (table.values[table.rows([key(query)])] == own.values[own.rows([query])]).all()


def test_p04_tables_of_other_encoders(run, two_tables, tmp_path):
    import numpy as np

    from data.candidates.embedding_table import EmbeddingTable

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
