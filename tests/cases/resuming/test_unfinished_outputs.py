"""T16 where models write folders: what was interrupted is refused until the command has run to its end."""

import pytest
import torch

from data.agent_selection import load_records
from data.io.records import RecordError, read_rows
from models.factors.predictor import new_predictor
from rollouts import compare_factors, factor_reports

BACKBONE = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("predictor")
    new_predictor(BACKBONE, ["dark", "red"], image_size=64).save_pretrained(folder)
    return str(folder)


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_t16_reports_with_factors_are_refused_until_all_splits_are_written(
    predictor, report_data, tmp_path, monkeypatch, whole
):
    written = []

    def write_some(folder, split, *rest, **named):
        if len(written) == whole:
            full_disk()
        written.append(split)
        write_split(folder, split, *rest, **named)

    command = ["--dataset_name", str(report_data), "--factors", predictor, "--output_dir", str(tmp_path / "out")]
    write_split = factor_reports.write_split
    with monkeypatch.context() as patch:
        patch.setattr(factor_reports, "write_split", write_some)
        with pytest.raises(SystemExit):
            factor_reports.main(command)
    with pytest.raises(RecordError, match="unfinished: still being written, or interrupted"):
        load_records(tmp_path / "out", "train")
    factor_reports.main(command)
    assert [len(load_records(tmp_path / "out", split)) for split in ("train", "validation", "test")] == [24, 4, 4]


@pytest.mark.parametrize("name", ["", "train.jsonl", "test.jsonl"])
def test_f05_reports_with_factors_never_overwrite_their_input(report_data, name):
    before = (report_data / "train.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="would overwrite the input"):
        factor_reports.main(
            ["--dataset_name", str(report_data / name), "--factors", "none", "--output_dir", str(report_data)]
        )
    assert (report_data / "train.jsonl").read_bytes() == before


def test_t16_a_comparison_that_failed_leaves_no_table_that_looks_whole(predictor, report_data, tmp_path, monkeypatch):
    (tmp_path / "routing.yaml").write_text("dark: exposure_filter\nred: blur_filter\n")
    command = ["--dataset_name", str(report_data), "--split", "test", "--routing", str(tmp_path / "routing.yaml")]
    command += ["--predictors", f"first={predictor}", "--output_dir", str(tmp_path / "out")]
    compare_factors.main(command)
    completions = tmp_path / "out" / "first" / "completions.jsonl"
    assert len(list(read_rows(completions))) == 4
    monkeypatch.setattr(compare_factors, "write_json", full_disk)
    with pytest.raises(SystemExit):
        compare_factors.main(command)
    with pytest.raises(RecordError, match="unfinished"):
        list(read_rows(completions))
