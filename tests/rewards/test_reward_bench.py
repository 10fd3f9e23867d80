"""The command that evaluates scores of responses: its files, its tables and its errors."""

import json

import pytest

from data.io.records import write_jsonl
from rewards import reward_bench
from rewards.preferences.accuracy import GROUPS
from rewards.preferences.published import COLUMNS, TABLE, published_scores, published_table

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


def test_the_table_shows_published_figures_and_ones_own(evaluate, capsys):
    evaluate([ROW], "--name", "mine")
    printed = capsys.readouterr().out
    assert "no decided pair in general, hallucination: macro is the mean of the other groups" in printed
    [own] = [line for line in printed.splitlines() if line.startswith("> mine")]
    assert own.split()[2:] == ["-", "-", "100.0", "100.0", "100.0", "this", "evaluation"]
    assert "arXiv 2509.16127" in printed
    assert "cannot be compared" in printed


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


@pytest.mark.parametrize("options", [[], ["--model", "m"], ["--dataset_name", "d"], ["--scores", "s", "--model", "m"]])
def test_either_scores_or_model_and_data(options, tmp_path, capsys):
    with pytest.raises(SystemExit):
        reward_bench.main([*options, "--output_dir", str(tmp_path)])
    assert "give either --model and --dataset_name, or --scores" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match="nowhere.jsonl: no such file"):
        reward_bench.main(["--scores", str(tmp_path / "nowhere.jsonl"), "--output_dir", str(tmp_path)])


# -- the published table ----------------------------------------------------------------------------------------------


def test_every_published_line_has_its_figures_and_an_arxiv_source():
    pairs, lines = published_scores()
    assert pairs == {"general": 183, "hallucination": 749, "reasoning": 318}
    assert len(lines) == 19
    for line in lines:
        assert len(line.scores) == len(COLUMNS)
        assert all(0 < score < 100 for score in line.scores)
        assert line.source.startswith("arXiv 2")
    assert TABLE.suffix == ".yaml"


def test_lines_whose_overall_does_not_follow_from_their_groups_are_marked():
    pairs, lines = published_scores()
    by_name = {line.name: line for line in lines}
    # (183 * 66.0 + 749 * 80.0 + 318 * 61.0) / 1250 = 73.1; for R1-Reward it is 77.2, and 71.9 is printed.
    assert not by_name["Skywork-VL-Reward-7B"].inconsistent(pairs)
    assert by_name["R1-Reward-7B"].inconsistent(pairs)
    assert by_name["LLaVA-Critic-8B"].inconsistent(pairs)  # macro 44.0, mean of its groups 50.7


def test_ones_own_line_stands_by_its_macro_accuracy():
    pairs, _ = published_scores()
    groups = {group: {"accuracy": 0.695, "n": pairs[group]} for group in GROUPS}
    lines = published_table("mine", {"groups": groups, "overall": 0.695, "macro": 0.695, "items": 1250}).splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("> mine"))
    assert lines[place - 1].startswith("Skywork-VL-Reward-7B")  # 69.0
    assert lines[place + 1].startswith("IXC-2.5-Reward-7B")  # 70.0
    assert "cannot be compared" not in "\n".join(lines)
