"""Images that cannot be read: named before a VLM is asked anything, or left out by `--skip_unreadable`."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_lines import with_options

from data.candidate_groups import load_groups
from data.candidates.pools import load_pools
from data.io.records import RecordError
from data.io.shards import ShardStore
from rollouts import beams, candidates, compare_factors, completions, factor_reports, factor_routing, filter_dataset
from rollouts.beams import Value

BROKEN = {"train-1", "train-5", "train-20"}
"""Two queries, which are examples too, and an example."""


def _break(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.fixture
def files(selection_files, tmp_path) -> Path:
    """The data set with four pictures that are cut short, one of them of `test.jsonl`."""
    folder = shutil.copytree(selection_files, tmp_path / "files")
    for name in (*BROKEN, "test-2"):
        _break(folder / f"{name}.png")
    return folder


class Uniform:
    """A scorer for which all examples are equal."""

    name = "info_gain"

    def __call__(self, sequences):
        return [Value(0.5) for _ in sequences]


def _candidates(files: Path, output: Path, *more: str) -> list[str]:
    found = ["--dataset_name", files, "--pools", files / "pools-train.jsonl", "--model", "vlm", "--output", output]
    return with_options([*found, "--num_retrieval", 0, "--num_random", 3], more)


def _beams(files: Path, output: Path, *more: str) -> list[str]:
    found = [
        "--pools",
        files / "pools-train.jsonl",
        "--dataset_name",
        files,
        "--model",
        files / "first",
        "--output",
        output,
    ]
    return with_options([*found, "--shots", 1], more)


def _completions(files: Path, model: str, output: Path, *more: str) -> list[str]:
    found = ["--dataset_name", files, "--model", model, "--output", output, "--rewards", "vqa_accuracy", "--limit", 4]
    return [str(part) for part in (*found, "--num_completions", 1, "--max_new_tokens", 2, *more)]


def _assert_named(end: pytest.ExceptionInfo, total: int = 24, names: set[str] = BROKEN) -> None:
    assert str(end.value).startswith(f"error: {len(names)} of {total} images cannot be read:\n")
    assert all(f"{name}.png: " in str(end.value) for name in names)


def _left_out(output: Path) -> dict[str, set]:
    found = json.loads(output.with_name(f"{output.name}.left_out.json").read_text())
    return {name: {entry["id"] for entry in part["left_out"]} for name, part in found.items()}


def _assert_left_out(output: Path, pools: Path) -> None:
    expected = load_pools(pools)
    groups = load_groups(output)
    assert [group.id for group in groups] == [query for query in expected if query not in BROKEN]
    for group in groups:
        assert group.pool == [item for item in expected[group.id] if item not in BROKEN]
        assert all(BROKEN.isdisjoint(candidate.pointer) for candidate in group.candidates)
    assert _left_out(output) == {"examples": BROKEN}


def test_a2_candidates(files, tmp_path, echoing, capsys):
    output = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as end:
        candidates.main(_candidates(files, output))
    _assert_named(end)
    assert echoing.asked == []
    candidates.main(_candidates(files, output, "--skip_unreadable"))
    _assert_left_out(output, files / "pools-train.jsonl")
    assert "3 of 24 images cannot be read; 3 of 24 examples are left out:" in capsys.readouterr().err
    first, asked = output.read_bytes(), list(echoing.asked)
    candidates.main(_candidates(files, output, "--skip_unreadable"))
    assert (output.read_bytes(), echoing.asked) == (first, asked)


def test_a2_candidates_of_other_queries(files, tmp_path, echoing):
    output = tmp_path / "out.jsonl"
    more = ["--queries", str(files), "--queries_split", "test", "--pools", str(files / "pools-test.jsonl")]
    candidates.main(_candidates(files, output, *more, "--skip_unreadable", "--limit", "4"))
    assert [group.id for group in load_groups(output)] == ["test-0", "test-1", "test-3"]
    assert _left_out(output) == {"examples": BROKEN, "queries": {"test-2"}}


def test_a2_candidates_take_beams_without_what_is_left_out(files, selection_files, tmp_path, echoing, monkeypatch):
    monkeypatch.setattr(beams, "load_scorer", lambda *_: Uniform())
    beams.main(_beams(selection_files, tmp_path / "beams.jsonl", "--beam_size", "10"))
    given = ["--beams", str(tmp_path / "beams.jsonl"), "--shots", "1", "--skip_unreadable", "--num_random", "0"]
    candidates.main(_candidates(files, tmp_path / "out.jsonl", *given))
    _assert_left_out(tmp_path / "out.jsonl", files / "pools-train.jsonl")
    assert {len(group.candidates) - len(group.pool) for group in load_groups(tmp_path / "out.jsonl")} == {0}


def test_a2_beams(files, selection_files, tmp_path, monkeypatch):
    output = tmp_path / "beams.jsonl"
    monkeypatch.setattr(beams, "load_scorer", lambda *_: pytest.fail("the VLM was loaded"))
    with pytest.raises(SystemExit) as end:
        beams.main(_beams(files, output))
    _assert_named(end)
    monkeypatch.setattr(beams, "load_scorer", lambda *_: Uniform())
    beams.main(_beams(files, output, "--skip_unreadable"))
    _assert_left_out(output, files / "pools-train.jsonl")
    settings = json.loads((tmp_path / "beams.jsonl.parts" / "settings.json").read_text())
    assert settings["left_out"] == {"examples": [1, 5, 20]}

    shutil.copy(selection_files / "train-20.png", files)  # the picture is there again: other rows
    with pytest.raises(SystemExit, match="field 'left_out.examples': the rows there were made with"):
        beams.main(_beams(files, output, "--skip_unreadable"))
    for name in BROKEN:
        shutil.copy(selection_files / f"{name}.png", files)
    beams.main(_beams(files, output, "--skip_unreadable", "--restart"))
    assert len(load_groups(output)) == 12
    assert not output.with_name("beams.jsonl.left_out.json").exists()
    beams.main(_beams(files, output))  # nothing is left out: the same work


def test_a2_nothing_left_is_an_error(files, tmp_path):
    lines = (files / "pools-train.jsonl").read_text().splitlines(keepends=True)
    (files / "pools-train.jsonl").write_text(lines[1])
    for main, command in ((candidates.main, _candidates), (beams.main, _beams)):
        with pytest.raises(SystemExit, match="no query is left whose images can be read"):
            main(command(files, tmp_path / "out.jsonl", "--skip_unreadable"))


def test_a2_completions(files, tiny_model, tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as end:
        completions.main(_completions(files, "someone/no-such-model", output))
    _assert_named(end, total=4, names={"train-1"})
    rows = [json.loads(line) for line in (files / "train.jsonl").read_text().splitlines()]
    (files / "train.jsonl").write_text("".join(json.dumps({**row, "id": None}) + "\n" for row in rows))
    completions.main(_completions(files, str(tiny_model), output, "--skip_unreadable"))
    assert [group.id for group in load_groups(output)] == [0, 2, 3]  # each its own position
    assert _left_out(output) == {"rows": {1}}
    settings = json.loads((tmp_path / "out.jsonl.parts" / "settings.json").read_text())
    assert settings["left_out"] == {"rows": [1]}


def test_a2_processes_that_left_out_different_rows_stop(tmp_path, monkeypatch):
    other = json.dumps({"seed": 0, "left_out": {"rows": [4]}})
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [*own, other])
    with (
        pytest.raises(RecordError, match="work: processes 0 and 1 differ in 'left_out'"),
        ShardStore(tmp_path / "work", {"seed": 0, "left_out": {"rows": [3, 4]}}),
    ):
        pass


# -- pools of reports -------------------------------------------------------------------------------------------------


@pytest.fixture
def reports(report_data, tmp_path) -> Path:
    """A report without images, on a pool of six of which the pictures 1 and 4 are cut short."""
    row = json.loads((report_data / "test.jsonl").read_text().splitlines()[0])
    folder = tmp_path / "reports"
    shutil.copytree(report_data / row["pool"], folder / "pool")
    for number in (1, 4):
        _break(folder / "pool" / "images" / f"{number:04}.png")
    (folder / "test.jsonl").write_text(json.dumps({**row, "images": [], "pool": "pool"}) + "\n")
    return folder


def _factor_reports(reports: Path, output: Path) -> list:
    return [reports, "--factors", "no/such", "--output_dir", output]


def _compare(reports: Path, output: Path) -> list:
    return [reports, "--predictors", "one=no/such", "--routing", "no.yaml", "--output_dir", output]


def _filter(reports: Path, output: Path) -> list:
    return [reports, "--model", "no/such", "--output", output]


def _route(reports: Path, output: Path) -> list:
    return ["run", reports / "pool", "--model", "no/such", "--routing", "no.yaml", "--output", output]


@pytest.mark.parametrize(
    ("main", "command"),
    [
        (factor_reports.main, _factor_reports),
        (compare_factors.main, _compare),
        (filter_dataset.main, _filter),
        (factor_routing.main, _route),
    ],
)
def test_a2_pools_of_reports_are_checked_before_a_model_is_loaded(reports, tmp_path, main, command):
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in command(reports, tmp_path / "out.jsonl")])
    _assert_named(end, total=6, names={"0001", "0004"})
    assert all(f"{reports}/pool: item {number}: field 'image" in str(end.value) for number in (1, 4))


def test_a2_what_a_model_selects_filters_the_items_that_can_be_read(reports, tmp_path, monkeypatch):
    agent = "<agent><name>blur_filter</name><prompt>keep blur at most 0</prompt></agent>"
    monkeypatch.setattr(
        filter_dataset, "select_agents", lambda *_: [f"<selection><agents>{agent}</agents></selection>"]
    )
    output = tmp_path / "out.jsonl"
    filter_dataset.main([*map(str, _filter(reports, output)), "--skip_unreadable"])
    row = json.loads(output.read_text())
    assert (row["kept"], row["removed"]) == ([], [0, 2, 3, 5])
    assert _left_out(output) == {f"items of {reports}/pool": {1, 4}}


class Dark:
    """A factor predictor that finds every picture dark."""

    config = SimpleNamespace(factors=["dark"], factor_names={})

    def probabilities(self, images, batch_size):
        return np.ones((len(images), 1))

    def choose(self, probabilities):
        return [["dark"]] * len(probabilities)


def test_a2_routing_leaves_out_items(reports, tmp_path, monkeypatch):
    import models.factors.predictor

    monkeypatch.setattr(models.factors.predictor, "load_factor_predictor", lambda *_: Dark())
    (tmp_path / "routing.yaml").write_text("dark: exact_duplicate_filter\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    output = tmp_path / "out.jsonl"
    more = ["--model", tmp_path / "model", "--routing", tmp_path / "routing.yaml", "--skip_unreadable"]
    factor_routing.main(with_options(_route(reports, output), more))
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == [0, 2, 3, 5]
    assert _left_out(output) == {"items": {1, 4}}
