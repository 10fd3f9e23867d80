"""Commands that use a factor predictor: routing a pool, and factors in reports; killed, they go on."""

import json
from pathlib import Path

import pytest
import torch

from data.agent_selection import load_records
from data.reports.pool import load_pool
from models.factors.predictor import new_predictor
from rollouts import factor_reports, factor_routing

BACKBONE = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
}
NAMES = {"dark": "badly exposed picture", "red": "colored red"}


@pytest.fixture(scope="module")
def predictor(report_data, tmp_path_factory) -> Path:
    """A random predictor whose thresholds lie in the middle of what it says about the reports' images."""
    torch.manual_seed(0)
    model = new_predictor(BACKBONE, list(NAMES), image_size=64, factor_names=NAMES)
    images = [path for folder in sorted((report_data / "pools").iterdir()) for path in (folder / "images").iterdir()]
    probabilities = model.probabilities(sorted(images))
    model.config.thresholds = [float(value) for value in sorted_middle(probabilities)]
    folder = tmp_path_factory.mktemp("predictor")
    model.save_pretrained(folder)
    return folder


def sorted_middle(probabilities):
    import numpy as np

    return np.median(probabilities, axis=0)


@pytest.fixture
def pool(report_data) -> Path:
    return report_data / "pools" / "train-00000"


def suggest(predictor, tmp_path) -> Path:
    table = tmp_path / "routing.yaml"
    factor_routing.main(["suggest", "--model", str(predictor), "--output", str(table)])
    return table


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_pool_is_routed_and_checked(predictor, pool, tmp_path, capsys):
    table = suggest(predictor, tmp_path)
    assert "dark: exposure_filter" in table.read_text()
    assert "red: null" in table.read_text()
    output = tmp_path / "routed.jsonl"
    factor_routing.main(
        ["run", "--pool", str(pool), "--model", str(predictor), "--routing", str(table), "--output", str(output)]
    )
    printed = capsys.readouterr().out
    found = rows(output)
    assert [row["id"] for row in found] == load_pool(str(pool)).ids
    red = sum("red" in row["factors"] for row in found)
    assert f"factor without an agent: red ({red} images)" in printed
    without = sum(not row["factors"] for row in found)
    assert (f"images without a factor: {without} of {len(found)}" in printed) == (without > 0)
    kept = sum(row["kept"] for row in found)
    assert f"{kept} of {len(found)} images kept" in printed
    for row in found:
        assert set(row["probabilities"]) == set(NAMES)
        assert row["kept"] == ("removed_by" not in row)


def test_routing_that_was_killed_goes_on(predictor, pool, tmp_path):
    table = suggest(predictor, tmp_path)
    arguments = ["run", "--pool", str(pool), "--model", str(predictor), "--routing", str(table), "--batch_size", "2"]
    factor_routing.main([*arguments, "--output", str(tmp_path / "whole.jsonl")])
    factor_routing.main([*arguments, "--output", str(tmp_path / "cut.jsonl")])
    shard = tmp_path / "cut.jsonl.parts" / "shard-00000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    marked = lines[0].replace(b'"dark": 0', b'"dark": 9')
    shard.write_bytes(marked + lines[1] + lines[2][:10])
    (tmp_path / "cut.jsonl").unlink()
    factor_routing.main([*arguments, "--output", str(tmp_path / "cut.jsonl")])
    whole, cut = rows(tmp_path / "whole.jsonl"), rows(tmp_path / "cut.jsonl")
    assert cut[0]["probabilities"]["dark"] > 9
    assert cut[1:] == whole[1:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "nowhere"}, "nowhere/items.jsonl: no such file"),
        ({"--model": "nowhere/nothing"}, "nowhere/nothing"),
        ({"--routing": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
        ({"--agents": "zoom"}, "unknown agent 'zoom'"),
    ],
)
def test_what_is_missing_is_named(predictor, pool, tmp_path, changes, message):
    given = {"--model": str(predictor), "--routing": str(suggest(predictor, tmp_path))} | changes
    place = given.pop("pool", str(pool))
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        factor_routing.main(
            ["run", place, "--output", str(tmp_path / "o.jsonl"), *(x for p in given.items() for x in p)]
        )


def test_reports_get_a_sentence_on_the_factors_of_their_pools(predictor, report_data, tmp_path, capsys):
    from models.factors.predictor import load_factor_predictor

    factor_reports.main(
        ["--dataset_name", str(report_data), "--factors", str(predictor), "--output_dir", str(tmp_path)]
    )
    model = load_factor_predictor(str(predictor), "cpu")
    seen = set()
    for split, count in (("train", 24), ("validation", 4), ("test", 4)):
        before, after = load_records(report_data, split), load_records(tmp_path, split)
        assert len(after) == count
        for old, new in zip(before, after, strict=True):
            pool = load_pool(old.pool)
            predicted = model.predict([pool.image_path(item) for item in pool.items])
            counts = {name: sum(factor in row for row in predicted) for factor, name in NAMES.items()}
            found = ", ".join(f"{name} ({number} of 6)" for name, number in counts.items() if number)
            assert new.report == f"{old.report} Predicted factors: {found or 'none'}."
            assert new.model_dump(exclude={"report"}) == old.model_dump(exclude={"report"})
            seen.update(name for name, number in counts.items() if number)
    assert seen == set(NAMES.values())
    assert "train: 24 reports written" in capsys.readouterr().out


def test_reports_that_were_killed_go_on(predictor, report_data, tmp_path):
    arguments = [
        "--dataset_name",
        str(report_data),
        "--factors",
        str(predictor),
        "--output_dir",
        str(tmp_path),
        "--batch_size",
        "4",
    ]
    factor_reports.main(arguments)
    expected = (tmp_path / "train.jsonl").read_bytes()
    shard = tmp_path / "train.parts" / "shard-00000.jsonl"
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:9]) + b'{"id": 9, "fac')
    (tmp_path / "train.jsonl").unlink()
    factor_reports.main(arguments)
    assert (tmp_path / "train.jsonl").read_bytes() == expected


def test_another_predictor_does_not_mix_with_what_is_there(predictor, report_data, tmp_path):
    arguments = ["--dataset_name", str(report_data), "--output_dir", str(tmp_path / "out"), "--factors"]
    factor_reports.main([*arguments, str(predictor)])
    torch.manual_seed(1)
    new_predictor(BACKBONE, list(NAMES), image_size=64).save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="field 'model': the rows there were made with"):
        factor_reports.main([*arguments, str(tmp_path / "other")])


def test_a_folder_without_splits_is_named(predictor, tmp_path):
    with pytest.raises(SystemExit, match="found none of the splits train, validation, test"):
        factor_reports.main(
            ["--dataset_name", str(tmp_path), "--factors", str(predictor), "--output_dir", str(tmp_path / "out")]
        )
