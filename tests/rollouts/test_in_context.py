"""Evaluation: right choices, numbers that follow from the stored answers, and errors before anything expensive."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch

from data.candidates.embedding_table import EmbeddingTable, Part
from data.io.records import RecordError, read_rows
from data.vqa import VqaRecord, load_records
from models.run_folders import mark_complete
from models.selectors.load import load_selector
from models.selectors.pointer import PointerSelector, PointerSelectorConfig
from rewards.scoring.statistics import bootstrap_mean, paired_difference
from rewards.vqa_accuracy import vqa_accuracy
from rollouts import in_context
from rollouts.example_selection import evaluation_report
from rollouts.example_selection.data import SelectionData, load_selection_data, load_tables
from rollouts.example_selection.evaluation_report import gap_closed
from rollouts.example_selection.selection_methods import (
    fixed_choice,
    most_similar,
    parse_methods,
    random_sets,
    selected,
)

SIMILARITIES = ["image_similarity", "text_similarity", "image_text_similarity"]


def arguments(folder, output, *more, pools=True, methods=("random",), tables=True) -> list[str]:
    found = ["--dataset_name", str(folder), "--examples", str(folder), "--model", "vlm", "--output_dir", str(output)]
    found += ["--pools", str(folder / "pools-test.jsonl")] if pools else []
    if tables:
        found += ["--query_table", str(folder / "test.safetensors")]
        found += ["--example_table", str(folder / "train.safetensors")]
    return [*found, "--methods", *methods, *map(str, more)]


def stored(output, method: str, shots: int) -> list[dict]:
    return [row for _, row in read_rows(output / "answers" / f"{method}-{shots}.jsonl")]


@pytest.fixture(scope="module")
def evaluated(selection_files, tmp_path_factory, echoing_module):
    """An evaluation of every kind of method by the echoing VLM: its folder and what it printed."""
    output = tmp_path_factory.mktemp("evaluated")
    selectors = [f"{name}={selection_files / name}" for name in ("first", "second", "stop")]
    methods = ["zero_shot", "random", "random_fixed", *SIMILARITIES, *selectors]
    options = ["--shots", 1, 2, "--best_of", 6, "--construct_order", "right"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        in_context.main(arguments(selection_files, output, *options, methods=methods))
    return output, printed.getvalue()


def test_every_query_is_answered_in_order_and_scored_officially(evaluated, selection_files):
    output, _ = evaluated
    queries = load_records(selection_files, "test")
    answer_of = {record.id: max(record.answers, key=record.answers.count) for record in load_records(selection_files)}
    for path in (output / "answers").glob("*.jsonl"):
        rows = [row for _, row in read_rows(path)]
        assert [row["id"] for row in rows] == [query.id for query in queries]
        if path.name.startswith("best_of"):
            continue
        for row, query in zip(rows, queries, strict=True):
            # `right` shows what was selected last at the end, and the VLM echoes that.
            expected = answer_of[row["examples"][-1]] if row["examples"] else "nothing"
            assert row["answer"] == expected
            assert row["accuracy"] == vqa_accuracy(expected, query.answers)


def test_pools_are_each_querys_own(evaluated, selection_files):
    output, _ = evaluated
    pools = {row["query_id"]: row["pool"] for _, row in read_rows(selection_files / "pools-test.jsonl")}
    for method in ("random", *SIMILARITIES, "first", "second", "stop"):
        for shots in (1, 2):
            for row in stored(output, method, shots):
                assert set(row["examples"]) <= set(pools[row["id"]])
                assert len(set(row["examples"])) == len(row["examples"]) <= shots
                assert len(row["examples"]) == shots or method == "stop"
    assert stored(output, "zero_shot", 0)[0]["examples"] == []
    assert len({tuple(row["examples"]) for row in stored(output, "random_fixed", 2)}) == 1
    assert len({tuple(row["examples"]) for row in stored(output, "random", 2)}) > 1


def test_the_summary_follows_from_the_stored_answers(evaluated):
    output, _ = evaluated
    summary = json.loads((output / "summary.json").read_text())
    values = {}
    for path in (output / "answers").glob("*.jsonl"):
        method, _, shots = path.stem.rpartition("-")
        rows = [row for _, row in read_rows(path)]
        if method == "best_of_6":
            values[method, int(shots)] = [max(item["accuracy"] for item in row["sets"]) for row in rows]
            values["mean_of_6", int(shots)] = [
                sum(item["accuracy"] for item in row["sets"]) / len(row["sets"]) for row in rows
            ]
        else:
            values[method, int(shots)] = [row["accuracy"] for row in rows]
    assert {(row["method"], row["shots"]) for row in summary["accuracy"]} == set(values)
    for row in summary["accuracy"]:
        expected = bootstrap_mean(values[row["method"], row["shots"]])
        assert (row["estimate"], row["low"], row["high"]) == (expected.estimate, expected.low, expected.high)
        assert row["n"] == summary["queries"] == 12
    compared = {(row["method"], row["against"]) for row in summary["differences"]}
    assert {
        ("first", "random"),
        ("first", "image_text_similarity"),
        ("second", "first"),
        ("stop", "second"),
    } <= compared
    assert ("image_text_similarity", "random") in compared
    assert ("random", "random") not in compared
    for row in summary["differences"]:
        after = values.get((row["method"], row["shots"]), values.get((row["method"], 0)))
        expected = paired_difference(values[row["against"], row["shots"]], after)
        assert (row["estimate"], row["low"], row["high"]) == (expected.estimate, expected.low, expected.high)
    for row in summary["gap_closed"]:
        low, high = (np.mean(values[f"{kind}_of_6", row["shots"]]) for kind in ("mean", "best"))
        share = (np.mean(values[row["method"], row["shots"]]) - low) / (high - low)
        assert row["estimate"] == pytest.approx(share)
        assert row["low"] <= row["estimate"] <= row["high"]


def test_the_best_of_n_sets_are_different_sets(evaluated):
    output, _ = evaluated
    for row in stored(output, "best_of_6", 2):
        sets = [tuple(sorted(item["examples"])) for item in row["sets"]]
        assert len(set(sets)) == 6


def test_the_table_and_the_plot(evaluated):
    output, printed = evaluated
    summary = json.loads((output / "summary.json").read_text())
    assert "VQA accuracy of 12 queries" in printed
    assert (output / "table.txt").read_text() in printed
    for row in summary["accuracy"]:
        line = next(line for line in printed.splitlines() if line.startswith(row["method"] + " "))
        assert f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in line
    assert (output / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_answers_are_shared_between_methods_and_runs(selection_files, tmp_path, echoing):
    command = arguments(selection_files, tmp_path, "--shots", 1, methods=["random", "image_similarity"])
    in_context.main(command)
    first = (tmp_path / "summary.json").read_text()
    asked = sum(echoing.asked)
    distinct = {
        (row["id"], *row["examples"])
        for method in ("random", "image_similarity")
        for row in stored(tmp_path, method, 1)
    }
    assert asked == len(distinct)
    assert json.loads(first)["answers"] == {"asked": 24, "computed": asked}
    in_context.main(command)
    assert sum(echoing.asked) == asked
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["answers"] == {"asked": 24}
    assert again["accuracy"] == json.loads(first)["accuracy"]


@pytest.mark.parametrize("fails", ["write_jsonl", "write_json", "draw_plot"])
def test_t16_an_evaluation_that_failed_while_it_was_written_is_refused(
    selection_files, tmp_path, echoing, monkeypatch, fails
):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    command = arguments(selection_files, tmp_path / "out", "--shots", 1)
    in_context.main(command)
    before = stored(tmp_path / "out", "random", 1)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_report, fails, full_disk)
        with pytest.raises(SystemExit):
            in_context.main(command)
    with pytest.raises(RecordError, match="unfinished: still being written, or interrupted"):
        stored(tmp_path / "out", "random", 1)
    in_context.main(command)
    assert stored(tmp_path / "out", "random", 1) == before


def test_choices_do_not_depend_on_the_other_queries(selection_files, tmp_path, echoing):
    for name, more in (("all", []), ("few", ["--limit", 4])):
        in_context.main(arguments(selection_files, tmp_path / name, "--shots", 2, *more, methods=["random"]))
    assert stored(tmp_path / "few", "random", 2) == stored(tmp_path / "all", "random", 2)[:4]


def test_most_similar_by_hand():
    """Image parts favour b, text parts c, their sum a."""
    parts = (Part(name="image", width=2, encoder="x"), Part(name="text", width=2, encoder="y"))
    queries = EmbeddingTable(["q"], np.array([[1, 0, 1, 0]]), parts)
    examples = EmbeddingTable(
        ["a", "b", "c"], np.array([[0.8, 0.6, 0.8, 0.6], [1, 0, -1, 0], [0, 1, 1, 0]], dtype=np.float32), parts
    )
    query = VqaRecord(id="q", question="?", answers=["a"], images=["a.png"])
    data = SelectionData([query], {}, {"q": ["c", "b", "a"]})
    assert most_similar(data, 3, ("image",), queries, examples) == [["b", "a", "c"]]
    assert most_similar(data, 3, ("text",), queries, examples) == [["c", "a", "b"]]
    assert most_similar(data, 2, ("image", "text"), queries, examples) == [["a", "c"]]


def test_a_selector_chooses_what_its_own_greedy_search_does(selection_files):
    folder = selection_files
    data = load_selection_data((str(folder), "test"), (str(folder), "train"), folder / "pools-test.jsonl", 3)
    queries, examples = load_tables(folder / "test.safetensors", folder / "train.safetensors", data)
    selector = load_selector(folder / "first")
    for query, choice in zip(data.queries, selected(selector, data, 3, queries, examples), strict=True):
        pool = data.pools[query.id]
        left = torch.from_numpy(queries.values[queries.rows([query.id])])
        right = torch.from_numpy(examples.values[examples.rows(pool)])
        found = selector.select(left, right, torch.arange(len(pool))[None], 3).pointers[0, 0]
        assert choice == [pool[place] for place in found]


def test_a_fixed_choice_never_shows_a_query_to_itself(selection_files):
    folder = selection_files
    train = (str(folder), "train")
    data = load_selection_data(train, train, folder / "pools-train.jsonl", 2, only_pooled=True)
    choices = fixed_choice(data, 5, seed=1)
    for query, choice in zip(data.queries, choices, strict=True):
        assert len(set(choice)) == 5
        assert query.id not in choice
    usual = max(map(tuple, choices), key=[tuple(choice) for choice in choices].count)
    assert all(len(set(choice) - set(usual)) <= 1 for choice in choices)


def test_random_sets_run_out(selection_files):
    folder = selection_files
    data = load_selection_data((str(folder), "test"), (str(folder), "train"), folder / "pools-test.jsonl", 1)
    assert all(len(sets) == 10 for sets in random_sets(data, 1, 64, seed=0))
    assert all(len(sets) == math.comb(10, 2) for sets in random_sets(data, 2, 64, seed=0))


def test_the_gap_by_hand():
    share = gap_closed([0.5, 1.0, 0.5, 1.0], [0.0, 0.5, 0.0, 0.5], [1.0, 1.0, 1.0, 1.0])
    assert share.estimate == pytest.approx(0.5 / 0.75)
    assert share.low <= share.estimate <= share.high
    assert gap_closed([1.0], [0.5], [0.5]) is None


# -- run folders and errors -------------------------------------------------------------------------------------------


def test_a_run_folder_stands_for_its_model_or_its_newest_complete_checkpoint(selection_files, tmp_path):
    for number, complete in ((9, True), (10, True), (11, False)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        if complete:
            mark_complete(folder)
    (method,) = parse_methods([f"mine={tmp_path}"])
    assert method.selector == str(tmp_path / "checkpoint-10")
    (tmp_path / "config.json").write_text("{}")
    assert parse_methods([f"mine={tmp_path}"])[0].selector == str(tmp_path)


def fails(capsys, command: list[str]) -> str:
    with pytest.raises(SystemExit) as error:
        in_context.main(command)
    return f"{error.value} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            ["closest"],
            "--methods: expected one of zero_shot, random, random_fixed, image_similarity, text_similarity, "
            "image_text_similarity, or NAME=SELECTOR, found 'closest'",
        ),
        (["random", "random"], "--methods: duplicate 'random'"),
        (["random=somewhere"], "'random' is a method of its own"),
        (
            ["mine={folder}"],
            "expected a model (config.json or adapter_config.json) or a complete checkpoint (complete.json in "
            "checkpoint-<step>), found neither; incomplete checkpoints: none",
        ),
    ],
)
def test_unknown_methods(selection_files, tmp_path, capsys, methods, message):
    methods = [method.format(folder=tmp_path) for method in methods]
    assert message in fails(capsys, arguments(selection_files, tmp_path / "out", methods=methods))
    assert not (tmp_path / "out").exists()


def test_errors_come_before_the_vlm_is_loaded(selection_files, tmp_path, capsys):
    """The VLM `vlm` does not exist, so that whatever comes before its loading is seen."""
    selector = f"mine={selection_files / 'stop'}"
    cases = {
        "--query_table and --example_table are needed by image_similarity, mine": (
            {"methods": ["image_similarity", selector], "tables": False},
            [],
        ),
        "chooses at most 4 examples, asked for 5": ({"methods": [selector]}, ["--shots", 5]),
        "11 shots need pools of at least 11 examples": ({"methods": ["random"]}, ["--shots", 11]),
        "give either --pools or --pool_size": ({"methods": ["random"]}, ["--pool_size", 3]),
        "--shots: expected at least 1, found 0": ({"methods": ["random"]}, ["--shots", 0]),
        "--limit: expected at least 1, found 0": ({"methods": ["random"]}, ["--limit", 0]),
    }
    for message, (settings, more) in cases.items():
        assert message in fails(capsys, arguments(selection_files, tmp_path, *more, **settings))


def test_a_selector_for_other_embeddings(selection_files, tmp_path, capsys):
    PointerSelector(PointerSelectorConfig(embedding_size=7, hidden_size=8)).save_pretrained(tmp_path / "narrow")
    command = arguments(selection_files, tmp_path / "out", methods=[f"mine={tmp_path / 'narrow'}"])
    assert "expected embeddings of 7 numbers, the tables have 12" in fails(capsys, command)


def test_a_real_vlm_on_two_processes_as_on_one(selection_files, tiny_model, tmp_path, run_warm):
    for name, processes in (("one", 1), ("two", 2)):
        options = ["--shots", 1, "--limit", 5, "--device", "cpu"]
        command = arguments(selection_files, tmp_path / name, *options, methods=["zero_shot", "random"])
        command[command.index("vlm")] = str(tiny_model)
        found = run_warm("-m", "rollouts.in_context", *command, processes=processes)
        assert found.returncode == 0, found.stderr
        assert found.stdout.count("VQA accuracy of 5 queries") == 1
    assert stored(tmp_path / "one", "random", 1) == stored(tmp_path / "two", "random", 1)
    kept = [path.read_text() for path in sorted((tmp_path / "two" / "answer_cache").iterdir())]
    assert [sum(len(json.loads(line)["answers"]) for line in text.splitlines()) for text in kept] == [5, 5]
