"""`python -m rollouts.filter_dataset`: what a model's answer keeps and removes of the data set that it read about."""

import json

import pytest

from data.reports.pool import load_pool
from filter_agents.executor import Executor
from filter_agents.registry import build_agents
from rollouts.filter_dataset import Report, filter_datasets, load_reports, main

AGENTS = ["blur_filter", "exact_duplicate_filter"]
ANSWER = (
    "<selection><reasoning>Soft.</reasoning><agents><agent><name>{name}</name><prompt>{prompt}</prompt></agent>"
    "</agents></selection>"
)


@pytest.fixture(scope="module")
def report(report_data) -> Report:
    return load_reports(str(report_data), "test")[0]


def test_selected_agents_divide_the_data_set_into_kept_and_removed(report):
    answer = ANSWER.format(name="exact_duplicate_filter", prompt="drop exact copies")
    [row] = filter_datasets([report], [answer], Executor(build_agents(AGENTS)))
    expected = build_agents(AGENTS)["exact_duplicate_filter"].keep(report.pool, ())
    ids = load_pool(report.pool).ids
    assert row["kept"] == [item_id for item_id in ids if item_id in set(expected)]
    assert sorted(row["kept"] + row["removed"]) == sorted(ids)
    assert row["agents"] == {"exact_duplicate_filter": "drop exact copies"}
    assert (row["unread_prompts"], row["unknown_agents"]) == (0, 0)


def test_unreadable_prompts_and_unknown_agents_are_counted(report):
    unread = ANSWER.format(name="blur_filter", prompt="make it nice")
    unknown = ANSWER.format(name="no_such_filter", prompt="x")
    rows = filter_datasets([report, report], [unread, unknown], Executor(build_agents(AGENTS)))
    assert [row["unread_prompts"] for row in rows] == [1, 0]
    assert [row["unknown_agents"] for row in rows] == [0, 1]
    assert rows[1]["kept"] == []


def test_an_answer_that_selects_nothing_readable_filters_nothing_and_is_reported(
    report_data, tiny_model, tmp_path, capsys
):
    """As an untrained model answers."""
    (tmp_path / "recipe.yaml").write_text("max_pixels: 1024\nmax_completion_length: 4\n", encoding="utf-8")
    output = tmp_path / "kept.jsonl"
    command = [
        "--dataset_name",
        str(report_data),
        "--model",
        str(tiny_model),
        "--config",
        str(tmp_path / "recipe.yaml"),
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--output", str(output)])
    assert ended.value.code == 1
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4
    assert all(row["kept"] is None and row["removed"] is None for row in rows)
    assert capsys.readouterr().out.count("no readable selection") == 4


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"report": "Fine."}, r":1: field 'pool': .*found missing"),
        ({"report": "", "pool": "p"}, r":1: field 'report'"),
        ({"report": "Fine.", "pool": "nowhere"}, r"nowhere.*items\.jsonl: no such file"),
    ],
)
def test_a_broken_report_ends_before_the_model_is_loaded(row, expected, tmp_path):
    path = tmp_path / "reports.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=expected):
        main(["--dataset_name", str(path), "--model", "no/such-model", "--output", str(tmp_path / "kept.jsonl")])
