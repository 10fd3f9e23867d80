"""`python -m rewards.eval` on files: what it writes, prints and refuses."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rewards.eval import main
from rewards.registry import REWARDS


@pytest.fixture
def rows(select) -> list[dict]:
    """Four rows; F1 by agent_selection is 1, 2/3, 0, 1, and the strict format is 1, 1, 0, 0."""
    blur, exposure = ("blur_filter", "keep"), ("exposure_filter", "keep")
    return [
        {"id": "a", "completion": select(blur), "ground_truth_agents": ["blur_filter"]},
        {"completion": select(blur, exposure), "ground_truth_agents": ["blur_filter"]},
        {"id": 7, "completion": "none", "ground_truth_agents": ["blur_filter"]},
        {"id": None, "completion": "none", "ground_truth_agents": []},
    ]


@pytest.fixture
def completions(tmp_path, rows) -> str:
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def evaluate(tmp_path, read_jsonl):
    """Function: arguments beside --output_dir -> (lines of scores.jsonl, rewards of summary.json)."""

    def run(*arguments: str) -> tuple[list[dict], dict]:
        main([*arguments, "--output_dir", str(tmp_path / "out")])
        summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
        return read_jsonl(tmp_path / "out" / "scores.jsonl"), summary["rewards"]

    return run


@pytest.fixture
def write_recipe(tmp_path):
    def write(**keys) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(keys), encoding="utf-8")
        return str(path)

    return write


def error_of(*arguments: str) -> str:
    """The message with which the command ends."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert isinstance(caught.value.code, str), "a message ends a command with status 1"
    return caught.value.code


# -- results ----------------------------------------------------------------------------------------------------------


def test_scores_are_written_in_order_with_ids_or_row_numbers(completions, evaluate):
    scores, _ = evaluate("--dataset_name", completions, "--rewards", "strict_xml_format", "agent_selection")
    assert scores == [
        {"id": "a", "strict_xml_format": 1.0, "agent_selection": 1.0},
        {"row": 1, "strict_xml_format": 1.0, "agent_selection": 2 / 3},
        {"id": 7, "strict_xml_format": 0.0, "agent_selection": 0.0},
        {"row": 3, "strict_xml_format": 0.0, "agent_selection": 1.0},
    ]


def test_the_summary_agrees_with_numpy(completions, evaluate):
    _, summary = evaluate("--dataset_name", completions, "--rewards", "agent_selection")
    values = [1, 2 / 3, 0, 1]
    found = summary["agent_selection"]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert (found["min"], found["max"]) == (0.0, 1.0)
    assert (found["count"], found["none"], found["errors"]) == (4, 0, 0)
    assert found["quantiles"] == {
        share: pytest.approx(np.quantile(values, float(share))) for share in ("0.05", "0.25", "0.5", "0.75", "0.95")
    }


def test_none_is_written_as_null_and_counted(tmp_path, rows, pool, evaluate, select):
    rows = [{**row, "ground_truth_filtered_data": [1, 2, 3, 4, "e5"]} for row in rows]
    rows[3] |= {"pool": pool, "completion": select()}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    scores, summary = evaluate("--dataset_name", str(path), "--rewards", "filtering_quality")
    assert [row["filtering_quality"] for row in scores] == [None, None, None, 1.0]
    assert (summary["filtering_quality"]["count"], summary["filtering_quality"]["none"]) == (1, 3)


def test_the_table_is_printed(completions, evaluate, capsys, tmp_path):
    evaluate("--dataset_name", completions, "--rewards", "agent_selection", "xml_format")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["reward", *"mean std min 5% 50% 95% max rows none errors".split()]
    assert lines[2].split() == ["agent_selection", *"0.667 0.471 0.000 0.100 0.833 1.000 1.000 4 0.0% 0".split()]
    assert lines[-1] == f"written to {tmp_path / 'out'}"


def test_limit_takes_the_first_rows(completions, evaluate):
    scores, summary = evaluate("--dataset_name", completions, "--rewards", "agent_selection", "--limit", "2")
    assert [row["agent_selection"] for row in scores] == [1.0, 2 / 3]
    assert summary["agent_selection"]["count"] == 2


def test_processes_write_the_same_file(completions, evaluate, monkeypatch):
    monkeypatch.setattr("rewards.scoring.rows.PARALLEL_FROM", 2)
    monkeypatch.setattr("rewards.scoring.rows.CHUNK", 2)
    alone = evaluate("--dataset_name", completions, "--rewards", "agent_selection", "--workers", "1")
    assert evaluate("--dataset_name", completions, "--rewards", "agent_selection", "--workers", "2") == alone


def test_parquet_with_chat_messages(tmp_path, rows, evaluate):
    table = [
        {**row, "id": str(number), "completion": [{"role": "assistant", "content": row["completion"]}]}
        for number, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    scores, _ = evaluate("--dataset_name", str(tmp_path / "rows.parquet"), "--rewards", "agent_selection")
    assert scores == [
        {"id": str(number), "agent_selection": score} for number, score in enumerate([1.0, 2 / 3, 0.0, 1.0])
    ]


def test_relative_pools_start_at_the_file(tmp_path, pool, evaluate, select):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "pools").symlink_to(pool)
    row = {"completion": select(), "ground_truth_filtered_data": [1, 2, 3, 4, "e5"], "pool": "pools"}
    (tmp_path / "deep" / "rows.json").write_text(json.dumps([row]), encoding="utf-8")
    scores, _ = evaluate("--dataset_name", str(tmp_path / "deep" / "rows.json"), "--rewards", "filtering_quality")
    assert scores == [{"row": 0, "filtering_quality": 1.0}]


# -- recipes and own rewards ------------------------------------------------------------------------------------------


def test_a_recipe_brings_its_rewards_parameters_and_agents(completions, evaluate, write_recipe):
    recipe = write_recipe(
        reward_funcs=["strict_xml_format", {"name": "rewards.agent_selection.AgentSelection"}],
        agents=["blur_filter"],
        learning_rate=1.0,
    )
    scores, _ = evaluate("--dataset_name", completions, "--config", recipe)
    assert [row["strict_xml_format"] for row in scores] == [1.0, 0.0, 0.0, 0.0]  # exposure_filter is unknown here
    assert [row["AgentSelection"] for row in scores] == [1.0, 2 / 3, 0.0, 1.0]


OWN = """
def brevity(completions, *, limit=3, **columns):
    return [float(len(text) <= limit) for text in completions]


def fragile(completions, **columns):
    if "none" in completions:
        raise ValueError("this is none")
    return [0.5] * len(completions)


async def waiting(completions, **columns):
    return [float(text == "none") for text in completions]
"""


@pytest.mark.parametrize("name", ["own_eval.brevity", "brevity"])
def test_rewards_named_on_the_command_line_keep_the_recipes_parameters(
    completions, evaluate, write_recipe, own_module, name
):
    own_module("own_eval", OWN)
    recipe = write_recipe(reward_funcs=["xml_format", {"name": "own_eval.brevity", "limit": 4}])
    scores, _ = evaluate("--dataset_name", completions, "--config", recipe, "--rewards", name)
    assert [set(row) - {"id", "row"} for row in scores] == [{"brevity"}] * 4
    assert [row["brevity"] for row in scores] == [0.0, 0.0, 1.0, 1.0]


def test_an_async_reward_of_ones_own(completions, evaluate, own_module):
    own_module("own_eval", OWN)
    scores, _ = evaluate("--dataset_name", completions, "--rewards", "own_eval.waiting")
    assert [row["waiting"] for row in scores] == [0.0, 0.0, 1.0, 1.0]


def test_failing_rows_are_counted_and_shown(completions, evaluate, own_module, capsys):
    own_module("own_eval", OWN)
    scores, summary = evaluate("--dataset_name", completions, "--rewards", "own_eval.fragile")
    assert [row["fragile"] for row in scores] == [0.5, 0.5, None, None]
    assert (summary["fragile"]["errors"], summary["fragile"]["none"], summary["fragile"]["count"]) == (2, 2, 2)
    shown = capsys.readouterr().err
    assert "reward 'fragile' failed at row 7: ValueError: this is none" in shown
    assert "reward 'fragile' failed at row 3: ValueError" in shown


def test_on_error_raise_stops_at_the_first_failing_row(completions, tmp_path, own_module):
    own_module("own_eval", OWN)
    message = error_of(
        *("--dataset_name", completions, "--output_dir", str(tmp_path / "out")),
        *("--rewards", "own_eval.fragile", "--on_error", "raise"),
    )
    assert message.startswith("error: reward 'fragile' failed at row 7: ValueError: this is none")
    assert not (tmp_path / "out" / "scores.jsonl").exists()


# -- list and compare -------------------------------------------------------------------------------------------------


def test_list_shows_every_reward_with_parameters_and_columns(capsys):
    main(["--list"])
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if not line.startswith(" ")] == list(REWARDS)
    assert "parameters: agent_weight=0.5, filtering_weight=0.5, agents=None" in text
    assert "columns:    ground_truth_agents, ground_truth_filtered_data, pool" in text
    assert "execute" not in text


@pytest.fixture
def two_evaluations(tmp_path) -> tuple[str, str]:
    """Before and after, with rows in another order, some that only one of them has, and two generations of row 1."""
    before = [
        {"row": 0, "f1": 0.0, "old": 1.0},
        {"row": 1, "generation": 0, "f1": 0.25, "old": 1.0},
        {"row": 1, "generation": 1, "f1": 0.75, "old": 1.0},
        {"id": "x", "f1": 1.0, "old": 1.0},
        {"id": "gone", "f1": 1.0, "old": 1.0},
        {"id": "unscored", "f1": None, "old": 1.0},
    ]
    after = [{"id": "x", "f1": 1.0}, {"row": 1, "f1": 1.0}, {"row": 0, "f1": 0.75}, {"id": "unscored", "f1": 0.0}]
    paths = []
    for name, rows in (("before", before), ("after", after)):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(paths[0]), str(paths[1])


def test_compare_pairs_rows_and_averages_generations(two_evaluations, tmp_path, capsys):
    main(["--compare", *two_evaluations, "--output_dir", str(tmp_path)])
    comparison = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert list(comparison) == ["f1"]
    found = comparison["f1"]
    assert (found["before"], found["after"], found["rows"]) == (0.5, pytest.approx(2.75 / 3), 3)
    assert found["estimate"] == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert (found["low"], found["high"]) == (0.0, 0.75)  # of 27 resamples, all-0 and all-0.75 have 3.7% each
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["f1", "0.500", "0.917", "+0.417", "[+0.000,", "+0.750]", "3"]


def test_compare_needs_no_output_dir(two_evaluations, tmp_path):
    main(["--compare", *two_evaluations])
    assert not (tmp_path / "comparison.json").exists()


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ('{"row": 0, "other": 1.0}', "have no reward in common"),
        ('{"row": 9, "f1": 1.0}', "have no row in common for 'f1'"),
        ('{"f1": 1.0}', "after.jsonl:1: expected an object with 'id' or 'row', as rewards.eval writes it"),
        ("[1]", "after.jsonl:1: expected an object with 'id' or 'row'"),
        ("{", "after.jsonl:1: "),
        ('{"row": 0, "f1": "good"}', "after.jsonl:1: field 'f1': expected a number or null, found 'good'"),
        (None, "after.jsonl: no such file or folder"),
    ],
    ids=str,
)
def test_compare_refuses(two_evaluations, tmp_path, after, message):
    before, path = two_evaluations
    if after is None:
        (tmp_path / "after.jsonl").unlink()
    else:
        (tmp_path / "after.jsonl").write_text(after, encoding="utf-8")
    assert message in error_of("--compare", before, path)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_a_missing_column_is_named(completions, tmp_path):
    message = error_of("--dataset_name", completions, "--output_dir", str(tmp_path), "--rewards", "vqa_accuracy")
    assert message == (
        f"error: {completions}: row 'a': reward 'vqa_accuracy' needs the column 'answers'; "
        "the data has: completion, ground_truth_agents, id"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"completion": "x"}\nnonsense\n', "rows.jsonl:2: column 1: not valid JSON"),
        ("rows.jsonl", '{"text": "x"}', "rows.jsonl:1: field 'completion': expected a text or chat messages"),
        (
            "groups.jsonl",
            '{"id": 1, "candidates": [{"completion": "x"}]}',
            "groups.jsonl:1: this is a candidate group; rewards score rows with one completion each",
        ),
        ("rows.txt", "x", "rows.txt: cannot tell the format"),
        ("rows.json", "{}", "rows.json: expected a JSON list of objects, found dict"),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = error_of("--dataset_name", str(tmp_path / name), "--output_dir", str(tmp_path), "--rewards", "xml_format")
    assert message in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rewards", "xml_formats"], "error: unknown reward 'xml_formats'; expected one of agent_selection,"),
        ([], "error: no rewards: name some with --rewards, or give a --config that has reward_funcs"),
        (["--rewards", "xml_format", "xml_format"], "error: duplicate reward 'xml_format' in reward_funcs"),
        (
            ["--rewards", "xml_format", "--config", "nowhere.yaml"],
            "error: nowhere.yaml: cannot be read as a recipe: No such file",
        ),
    ],
)
def test_wrong_arguments_are_named(completions, tmp_path, arguments, message):
    assert error_of("--dataset_name", completions, "--output_dir", str(tmp_path), *arguments).startswith(message)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("reward_funcs: [", "recipe.yaml: not valid YAML"),
        ("- a\n- b", "recipe.yaml: expected a YAML mapping, found list"),
        ("reward_funcs: agent_selection", "reward_funcs: expected a list of entries, found 'agent_selection'"),
        ("reward_funcs: [{name: combined, agent_wait: 1}]", "reward 'combined' has no parameter 'agent_wait'"),
        ("{reward_funcs: [strict_xml_format], agents: [blurr]}", "unknown agent 'blurr'; expected one of blur_filter"),
    ],
)
def test_wrong_recipes_are_named(completions, tmp_path, recipe, message):
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    arguments = (
        "--dataset_name",
        completions,
        "--output_dir",
        str(tmp_path),
        "--config",
        str(tmp_path / "recipe.yaml"),
    )
    assert message in error_of(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "out"], "missing: --dataset_name; needed unless --compare or --list is given"),
        (["--dataset_name", "x.jsonl"], "missing: --output_dir; needed unless"),
        (
            ["--dataset_name", "x", "--output_dir", "out", "--model", "m", "--num_generations", "2"],
            "--num_generations above 1 needs a --temperature above 0",
        ),
        (["--dataset_name", "x", "--output_dir", "out", "--on_error", "ignore"], "invalid choice: 'ignore'"),
    ],
)
def test_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_runs_by_itself(run_command, completions, tmp_path):
    arguments = ("--dataset_name", completions, "--rewards", "agent_selection", "--output_dir", tmp_path / "out")
    finished = run_command("-m", "rewards.eval", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "out" / "scores.jsonl").is_file()
    failed = run_command("-m", "rewards.eval", *arguments[:3], "vqa_accuracy", *arguments[4:])
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr


def test_scoring_loads_no_model_library(run_command):
    """Scoring files and answering --help need no torch, which takes seconds to import."""
    code = "import sys, rewards.eval; print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    assert run_command("-c", code).stdout.strip() == "[]"
