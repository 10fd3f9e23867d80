"""`rewards.reward_bench --diagnose` with a tiny reward model: its figures, its files, going on where it was ended."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.io.records import write_jsonl
from rewards import reward_bench
from rewards.scoring.model_scores import StoredScores

COLOURS = ("red", "green", "blue", "teal")
ROWS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve rows of two responses, the last one without an image."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    for number in range(ROWS):
        colour, other = COLOURS[number % 4], COLOURS[(number + 1) % 4]
        Image.new("RGB", (32, 16 + 16 * (number % 2)), colour).save(folder / f"{number}.png")
        row = {"id": f"r{number}", "query": "which colour?", "response": [f"It is {colour}.", f"{other}, I think."]}
        row |= {"human_ranking": [number % 2, 1 - number % 2]} | ({} if number == 11 else {"image": f"{number}.png"})
        rows.append(row)
    write_jsonl(folder / "test.jsonl", rows)
    return folder / "test.jsonl"


@pytest.fixture
def evaluate(data, tiny_reward_model, tmp_path):
    """Function: options -> `summary.json` in the folder `out`."""

    def run(*options: str) -> dict:
        files = ["--model", str(tiny_reward_model), "--dataset_name", str(data), "--output_dir", str(tmp_path / "out")]
        reward_bench.main([*files, "--device", "cpu", "--name", "tiny", *options])
        return json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))

    return run


def accuracy(model, data: Path, change) -> float:
    """Of the rows with an image, with what `change` makes of it."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()][:-1]
    right = 0
    for row in rows:
        images = [change(Image.open(data.parent / row["image"]))]
        first, second = model.score([row["query"]] * 2, [[one for one in images if one]] * 2, row["response"]).tolist()
        right += (first > second) == (row["human_ranking"] == [0, 1])
    return right / len(rows)


def test_its_figures_are_those_of_the_models_scores(evaluate, data, tiny_reward_model, tmp_path, capsys):
    from models.reward.load import load_reward_model

    found = evaluate("--diagnose", "100")["diagnosis"]
    model = load_reward_model(tiny_reward_model, "cpu")[0]
    assert (found["rows"], found["all_rows"], found["without_images"]) == (ROWS, ROWS, 1)
    changes = {"with": lambda image: image, "blank": lambda image: Image.new("RGB", image.size, (128,) * 3),
               "without": lambda image: None}  # fmt: skip
    for variant, change in changes.items():
        assert found["images"][variant]["share"] == pytest.approx(accuracy(model, data, change)), variant
    assert found["images"]["other"]["rows"] == ROWS - 1
    printed = capsys.readouterr().out
    assert "Does it look at the image?" in printed
    assert "12 of 12 rows" in printed
    assert sorted(path.name.split("_2")[0] for path in (tmp_path / "out").iterdir()) == [
        "calibration.png", "diagnosis.png", "scores.png", "summary.json", "tiny",
    ]  # fmt: skip


def test_what_was_scored_is_not_scored_again(evaluate, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(reward_bench, "write_evaluation", lambda *_: sys.exit("no space left"))
        with pytest.raises(SystemExit, match="no space left"):
            evaluate("--diagnose", "5")
    monkeypatch.setattr(StoredScores, "_load", lambda self: pytest.fail("the model was loaded"))
    assert evaluate("--diagnose", "5")["diagnosis"]["rows"] == 5


def test_an_evaluation_that_was_ended_goes_on_with_a_diagnosis(evaluate, monkeypatch):
    """The scores of the rows as they are stay; only the others are made."""
    with monkeypatch.context() as patch:
        patch.setattr(reward_bench, "write_evaluation", lambda *_: sys.exit("no space left"))
        with pytest.raises(SystemExit, match="no space left"):
            evaluate()
    scored = []
    score_chunk = StoredScores._score_chunk
    monkeypatch.setattr(
        StoredScores, "_score_chunk", lambda self, *rows: scored.append(rows[1]) or score_chunk(self, *rows)
    )
    found = evaluate("--diagnose", "100")["diagnosis"]
    assert sum(map(len, scored)) == 3 * (ROWS - found["without_images"])


def test_it_needs_a_model(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reward_bench.main(["--scores", "s.jsonl", "--output_dir", str(tmp_path), "--diagnose", "10"])
    assert "--diagnose needs --model" in capsys.readouterr().err
