"""The command that evaluates scores of responses: its files, its tables and its errors."""

import json

import pytest
from PIL import Image

from data.io.records import write_json, write_jsonl
from rewards import reward_bench
from rewards.scoring.model_scores import ScoreRequest, StoredScores

ROW = {
    "id": "mmmu_1",
    "query": "how many?",
    "response": ["two", "three"],
    "human_ranking": [1, 0],
    "scores": [0.5, 1.5],
}


@pytest.fixture
def evaluate(tmp_path):
    """Function: rows -> output folder."""

    def run(rows: list[dict], *options: str):
        write_jsonl(tmp_path / "my_scores.jsonl", rows)
        reward_bench.main(
            ["--scores", str(tmp_path / "my_scores.jsonl"), "--output_dir", str(tmp_path / "out"), *options]
        )
        return tmp_path / "out"

    return run


def test_files_of_an_evaluation(evaluate, read_jsonl):
    rows = [ROW, {**ROW, "id": "VLFeedback_2", "response": ["a", "b", "c"], "human_ranking": [0, 1, 1],
                  "scores": [2.0, 3.0, 2.0], "rationale": "kept out"}]  # fmt: skip
    folder = evaluate(rows)
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "calibration.png"
    assert names[1].startswith("my_scores_")
    assert names[2:] == ["scores.png", "summary.json"]
    assert [list(row.values()) for row in read_jsonl(folder / names[1])] == [
        ["mmmu_1", 0, 0.5, 1, 1],
        ["mmmu_1", 1, 1.5, 0, 0],
        ["VLFeedback_2", 0, 2.0, 1, 0],
        ["VLFeedback_2", 1, 3.0, 0, 1],
        ["VLFeedback_2", 2, 2.0, 1, 1],
    ]
    assert list(read_jsonl(folder / names[1])[0]) == ["id", "response_index", "score", "rank", "human_rank"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["responses"] == names[1]
    assert summary["groups"]["reasoning"]["accuracy"] == 1.0
    assert summary["groups"]["general"] | {"wilson": None, "strict_wilson": None} == {
        "accuracy": 0.0, "count": 1, "ties": 1, "correct": 0, "n": 2, "wilson": None, "strict_accuracy": 0.0,
        "strict_wilson": None,
    }  # fmt: skip
    assert summary["groups"]["hallucination"]["accuracy"] is None
    assert summary["macro"] == 0.5
    assert summary["macro_groups"] == ["general", "reasoning"]
    assert summary["overall"] == 0.5
    assert summary["coverage"] == pytest.approx(2 / 3)
    assert (summary["rows"], summary["items"], summary["equal_ranks"]) == (2, 3, 1)
    assert sum(one["count"] for one in summary["calibration"]["bins"]) == 3


def test_the_tables_show_ones_own_and_published_figures(evaluate, capsys):
    evaluate([ROW, {**ROW, "scores": [1.5, 1.5], "id": "mmmu_2"}], "--name", "mine")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "VL-RewardBench"
    [reasoning] = [line.split() for line in lines if line.startswith("reasoning")]
    assert reasoning[1:2] + reasoning[-4:] == ["100.00", "1", "1", "2", "50.00"]
    assert "no decided pair in general, hallucination: macro is the mean of the other groups" in lines
    assert any("arXiv 2509.16127, 2025-09" in line for line in lines)
    assert not any(line.startswith("> mine") for line in lines)
    assert "no source says that its figures are of your 2 rows, so yours are not shown beside" in lines


def test_parquet_with_scores_gives_the_same(evaluate, tmp_path):
    import pandas

    first = json.loads((evaluate([ROW]) / "summary.json").read_text(encoding="utf-8"))
    pandas.DataFrame([ROW]).to_parquet(tmp_path / "my_scores.parquet")
    arguments = ["--scores", str(tmp_path / "my_scores.parquet"), "--output_dir", str(tmp_path / "again")]
    reward_bench.main(arguments)
    second = json.loads((tmp_path / "again" / "summary.json").read_text(encoding="utf-8"))
    assert {**first, "responses": ""} == {**second, "responses": ""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.0]}, "field 'scores': expected 2 numbers, one a response, not 1"),
        ({"scores": [1.0, 2.0, 3.0]}, "field 'scores': expected 2 numbers, one a response, not 3"),
        ({"scores": [1.0, float("nan")]}, "field 'scores.1': expected a finite number"),
        ({"scores": [1.0, float("inf")]}, "field 'scores.1': expected a finite number"),
        ({"scores": [1.0, "2"]}, "field 'scores.1': Input should be a valid number"),
        ({"scores": [1.0, None]}, "field 'scores.1': Input should be a valid number"),
        ({"scores": 1.0}, "field 'scores': Input should be a valid list"),
        ({"human_ranking": [0]}, "field 'human_ranking': expected 2 numbers, one a response, not 1"),
        ({"human_ranking": [0, None]}, "field 'human_ranking.1': Input should be a valid number"),
        ({"human_ranking": ["0", "1"]}, "field 'human_ranking.0': Input should be a valid number"),
        ({"response": ["one"]}, "field 'response': Value should have at least 2 items"),
        ({"response": "one"}, "field 'response': Input should be a valid list"),
        ({"response": ["one", 2]}, "field 'response.1': Input should be a valid string"),
        ({"query": None}, "field 'query': Input should be a valid string"),
        ({"id": 1.5}, "field 'id': expected an integer or a text"),
        ({"id": True}, "field 'id': expected an integer or a text"),
    ],
)
def test_a_malformed_row_is_named(evaluate, change, message):
    with pytest.raises(SystemExit) as stopped:
        evaluate([ROW, {**ROW, **change}])
    assert "my_scores.jsonl:2: " in stopped.value.code
    assert message in stopped.value.code


@pytest.mark.parametrize("field", list(ROW))
def test_a_missing_field_is_named(evaluate, field):
    with pytest.raises(SystemExit, match=rf"my_scores.jsonl:1: field '{field}': Field required \(found missing\)"):
        evaluate([{key: value for key, value in ROW.items() if key != field}])


def test_every_problem_is_listed_before_anything_is_written(evaluate, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        evaluate([{**ROW, "scores": [1.0]}, ROW, {**ROW, "human_ranking": [1, 2, 3]}])
    assert stopped.value.code.count("field '") == 2
    assert not (tmp_path / "out").exists()


def test_equal_ranks_only_are_an_error(evaluate):
    with pytest.raises(SystemExit, match="field 'human_ranking': no row has two responses of unequal rank"):
        evaluate([{**ROW, "human_ranking": [0, 0]}])


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model", "m"],
        ["--dataset_name", "d"],
        ["--scores", "s", "--model", "m"],
        ["--judge", "j"],
        ["--judge", "j", "--model", "m", "--dataset_name", "d"],
    ],
)
def test_either_scores_or_model_and_data(options, tmp_path, capsys):
    with pytest.raises(SystemExit):
        reward_bench.main([*options, "--output_dir", str(tmp_path)])
    assert "give either --model or --judge, and --dataset_name; or --scores" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match="nowhere.jsonl: no such file"):
        reward_bench.main(["--scores", str(tmp_path / "nowhere.jsonl"), "--output_dir", str(tmp_path)])


def test_rows_of_a_bench_are_scored_by_a_model_and_counted_by_category(tmp_path, monkeypatch):
    """Responses score by their length here: the better one of the first row, the worse one of the second is longer."""
    Image.new("RGB", (8, 8)).save(tmp_path / "grey.png")
    row = {"ID": "pairs_1", "Text": "Who?", "Image": "grey.png", "Output1": "Nobody at all.", "Output2": "He.",
           "Better": "Output1", "Category": "safety"}  # fmt: skip
    unreadable = {**row, "ID": "pairs_2", "Image": "missing.png"}
    write_json(tmp_path / "all_data.json", [row, {**row, "ID": "hateful_1", "Better": "Output2"}, unreadable])

    def lengths(_: StoredScores, requests: list[ScoreRequest], source: str) -> list[list[float]]:
        return [[float(len(text)) for text in request.responses] for request in requests]

    monkeypatch.setattr(StoredScores, "score", lengths)
    monkeypatch.setattr(StoredScores, "forget", lambda _: None)
    data, out = str(tmp_path / "all_data.json"), str(tmp_path / "out")
    reward_bench.main(["--model", "length", "--dataset_name", data, "--output_dir", out, "--skip_bad_rows"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["bench"] == "multimodal_rewardbench"
    groups = {name: (group["accuracy"], group["n"]) for name, group in summary["groups"].items()}
    assert groups == {"safety": (0.5, 2), "safety/bias": (1.0, 1), "safety/toxicity": (0.0, 1)}
    assert (summary["rows"], summary["bad_rows"]) == (3, 1)


def test_the_bench_may_be_named(evaluate):
    rows = [{"id": "mmmu_1", "image": "mcq/1.png", "query": "q", "prompt": "q", "chosen": "two", "rejected": "three",
             "response": ["two", "three"], "human_ranking": [0, 1], "scores": [1.5, 0.5]}]  # fmt: skip
    found = [
        json.loads((evaluate(rows, *named) / "summary.json").read_text(encoding="utf-8"))
        for named in ([], ["--bench", "mm_rlhf_rewardbench"])
    ]
    assert [summary["bench"] for summary in found] == ["vl_rewardbench", "mm_rlhf_rewardbench"]
    assert list(found[1]["groups"]) == ["mcq", "long", "short", "safety", "video"]
