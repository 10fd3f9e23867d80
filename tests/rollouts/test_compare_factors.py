"""Ways to choose agents, measured on the same reports."""

import json
import multiprocessing
from types import SimpleNamespace

import pytest
import torch

from models.factors.predictor import new_predictor
from rollouts import compare_factors
from rollouts.compare_factors import format_comparison, main

BACKBONE = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A predictor that finds "dark" on every image and "red" on none, and a routing table."""
    folder = tmp_path_factory.mktemp("compared")
    torch.manual_seed(0)
    model = new_predictor(BACKBONE, ["dark", "red"], image_size=64)
    model.config.thresholds = [0.0, 1.0]
    model.save_pretrained(folder / "predictor")
    (folder / "routing.yaml").write_text("dark: exposure_filter\nred: blur_filter\n")
    return folder


@pytest.fixture(scope="module")
def compared(files, report_data, tiny_model):
    """The output folder of a comparison of all ways. A new process imports for seconds, so that only the one of `vlm`,
    which shows that nothing of this one is needed, is no fork."""
    (files / "recipe.yaml").write_text("max_completion_length: 8\nmax_pixels: 1024\n")
    arguments = {
        "--split": "train",
        "--config": files / "recipe.yaml",
        "--routing": files / "routing.yaml",
        "--predictors": f"always={files / 'predictor'}",
        "--vlm": tiny_model,
        "--vlm_with_factors": tiny_model,
        "--output_dir": files / "out",
    }
    starts = map(multiprocessing.get_context, ("fork", "spawn", "fork"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_factors, "multiprocessing", SimpleNamespace(get_context=lambda method: next(starts)))
        main(["--dataset_name", str(report_data), *(str(part) for pair in arguments.items() for part in pair)])
    return files / "out"


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_predictor_chooses_the_agents_of_its_factors(compared, report_data):
    """Always exposure_filter: F1 is 2 / (1 + n) where it is one of n right agents, and 0 elsewhere."""
    right = [row["ground_truth_agents"] for row in rows(report_data / "train.jsonl")]
    expected = [2 / (1 + len(agents)) if "exposure_filter" in agents else 0.0 for agents in right]
    found = [row["agent_selection"] for row in rows(compared / "always" / "scores.jsonl")]
    assert found == pytest.approx(expected)
    table = json.loads((compared / "comparison.json").read_text())
    assert table["ways"][0]["agent_selection"]["estimate"] == pytest.approx(sum(expected) / 24)


def test_every_way_has_quality_time_and_memory(compared):
    table = json.loads((compared / "comparison.json").read_text())
    assert [row["way"] for row in table["ways"]] == ["always", "vlm", "vlm_with_factors"]
    for row in table["ways"]:
        assert row["reports"] == 24
        assert row["seconds_a_report"] > 0
        assert row["memory_mb"] > 100
        for reward in ("agent_selection", "filtering_quality"):
            assert row[reward]["low"] <= row[reward]["estimate"] <= row[reward]["high"]
    predictor, vlm, both = (row["parameters"] for row in table["ways"])
    assert both == predictor + vlm
    assert set(table["with_minus_without"]) == {"agent_selection", "filtering_quality"}


def test_only_the_vlm_with_factors_reads_them(compared):
    with_factors = [row["report"] for row in rows(compared / "vlm_with_factors" / "reports.jsonl")]
    without = [row["report"] for row in rows(compared / "vlm" / "reports.jsonl")]
    assert with_factors == [f"{report} Predicted factors: dark (6 of 6)." for report in without]


def test_the_table_as_text(compared):
    text = format_comparison(json.loads((compared / "comparison.json").read_text()))
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["always", "vlm", "vlm_with_factors"]
    assert lines[4].startswith("agent_selection: factors add ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--predictors": "model"}, "--predictors: expected NAME=MODEL, found 'model'"),
        ({"--predictors": "vlm=model"}, "expected different names, none of them vlm or vlm_with_factors"),
        ({"--predictors": "x=nowhere/nothing"}, "nowhere/nothing"),
        ({"--routing": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
        ({"--config": "nowhere.yaml"}, "nowhere.yaml: cannot be read as a recipe"),
    ],
)
def test_bad_arguments_are_named(files, report_data, tmp_path, changes, message):
    given = {"--predictors": f"x={files / 'predictor'}", "--routing": str(files / "routing.yaml")} | changes
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main(
            [
                "--dataset_name",
                str(report_data),
                "--output_dir",
                str(tmp_path),
                *(part for pair in given.items() for part in pair),
            ]
        )
    assert not (tmp_path / "comparison.json").exists()


def test_reports_without_pools_are_refused(files, tmp_path):
    row = {"report": "dark", "ground_truth_agents": ["blur_filter"], "ground_truth_filtered_data": [1]}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit, match="expected a pool for every report, to filter it"):
        main(["--dataset_name", str(tmp_path), "--predictors", f"x={files / 'predictor'}",
              "--routing", str(files / "routing.yaml"), "--output_dir", str(tmp_path / "out")])  # fmt: skip
