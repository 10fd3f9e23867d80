"""Scoring files with a reward model: order, resuming, several processes, and what is refused."""

import importlib
import io
import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from places import KILLS

from data.io.records import RecordError, write_jsonl
from rewards import reward_bench, score
from rewards.scoring.model_scores import ScoreRequest, StoredScores

WORKER = KILLS / "rollout_kill_worker.py"
ROWS = 40


def picture(colour: str, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`responses.jsonl`: rows with none to two images of different sizes, and one to three responses."""
    folder, rng, rows = tmp_path_factory.mktemp("responses"), random.Random(0), []
    for number in range(8):
        picture(rng.choice(["red", "blue", "teal"]), (32, 32 + 8 * number)).save(folder / f"{number}.png")
    for number in range(ROWS):
        row = {"id": f"r{number}", "query": "what is shown? " + "and where? " * rng.randint(0, 8), "kept": number}
        row["images"] = [f"{rng.randrange(8)}.png" for _ in range(rng.randint(0, 2))]
        texts = [f"it is shape {place} " * rng.randint(1, 12) for place in range(rng.randint(2, 3))]
        row |= (
            {"response": texts[0]} if number % 3 == 0 else {"response": texts, "human_ranking": [*range(len(texts))]}
        )
        rows.append(row)
    write_jsonl(folder / "responses.jsonl", rows)
    return folder


def _arguments(
    folder: Path, model: Path, output: Path, data: str = "responses.jsonl", batch_size: int = 4
) -> list[str]:
    files = ["--model", str(model), "--dataset_name", str(folder / data), "--output", str(output)]
    return [*files, "--batch_size", str(batch_size), "--device", "cpu"]


@pytest.fixture(scope="module")
def undisturbed(folder, tiny_reward_model, tmp_path_factory) -> tuple[Path, float]:
    """The file, and how long it took to make."""
    output = tmp_path_factory.mktemp("undisturbed") / "scored.jsonl"
    importlib.import_module("models.reward.model")  # not part of the time
    start = time.monotonic()
    score.main(_arguments(folder, tiny_reward_model, output))
    return output, time.monotonic() - start


@pytest.fixture(scope="module")
def model(tiny_reward_model):
    from models.reward.load import load_reward_model

    return load_reward_model(tiny_reward_model, "cpu")[0]


def test_rows_come_out_in_input_order_with_their_scores(undisturbed, folder, model, read_jsonl):
    before, after = read_jsonl(folder / "responses.jsonl"), read_jsonl(undisturbed[0])
    assert len(after) == ROWS
    for asked, found in zip(before, after, strict=True):
        texts = asked["response"]
        scores = found.pop("scores") if isinstance(texts, list) else [found.pop("score")]
        assert found == asked
        images = [str(folder / image) for image in asked["images"]]
        alone = [
            model.score([asked["query"]], [images], [text], batch_size=1).item()
            for text in ([texts] if isinstance(texts, str) else texts)
        ]
        assert scores == pytest.approx(alone, abs=1e-5)


def test_nothing_is_left_beside_the_output(undisturbed):
    assert [path.name for path in undisturbed[0].parent.iterdir()] == ["scored.jsonl"]


def test_killed_a_few_times_the_file_is_the_same(undisturbed, folder, tiny_reward_model, tmp_path, run_warm):
    output = tmp_path / "scored.jsonl"
    command = [WORKER, 4, 3, undisturbed[1], "rewards.score", *_arguments(folder, tiny_reward_model, output)]
    finished = run_warm(*command, timeout=500)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout.rsplit("killed ", 1)[1]) >= 2
    assert output.read_bytes() == undisturbed[0].read_bytes()


def test_what_was_scored_is_not_scored_again(undisturbed, folder, tiny_reward_model, tmp_path, monkeypatch):
    """A run that ended before its output was written has all scores; the next one loads no model."""
    from rewards.scoring.model_scores import StoredScores

    with monkeypatch.context() as patch:
        patch.setattr(score, "write_jsonl", lambda *_: sys.exit("no space left"))
        with pytest.raises(SystemExit, match="no space left"):
            score.main(_arguments(folder, tiny_reward_model, tmp_path / "scored.jsonl"))
    monkeypatch.setattr(StoredScores, "_load", lambda self: pytest.fail("the model was loaded"))
    score.main(_arguments(folder, tiny_reward_model, tmp_path / "scored.jsonl"))
    assert (tmp_path / "scored.jsonl").read_bytes() == undisturbed[0].read_bytes()


@pytest.mark.parametrize("change", ["model", "input", "batch size"])
def test_a_started_work_folder_refuses_other_work(change, folder, tiny_reward_model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(score, "write_jsonl", lambda *_: sys.exit("no space left"))
        with pytest.raises(SystemExit, match="no space left"):
            score.main(_arguments(folder, tiny_reward_model, tmp_path / "scored.jsonl"))
    model, given, field = tiny_reward_model, {}, "batch_size"
    if change == "batch size":
        given = {"batch_size": 5}
    elif change == "model":
        import shutil

        model = Path(shutil.copytree(tiny_reward_model, tmp_path / "other"))
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        (model / "config.json").write_text(json.dumps(config | {"score_max": 6.0}), encoding="utf-8")
        field = "model"
    else:
        write_jsonl(tmp_path / "fewer.jsonl", [{"query": "what?", "response": "this"}])
        given, field = {"data": str(tmp_path / "fewer.jsonl")}, "data"
    with pytest.raises(SystemExit, match=rf"settings.json: field '{field}': the rows there were made with"):
        score.main(_arguments(folder, model, tmp_path / "scored.jsonl", **given))


def test_two_processes_make_the_same_file_as_one(undisturbed, folder, tiny_reward_model, tmp_path, run_warm):
    output = tmp_path / "scored.jsonl"
    arguments = _arguments(folder, tiny_reward_model, output)
    finished = run_warm("-m", "rewards.score", *arguments, processes=2)
    assert finished.returncode == 0, finished.stderr
    assert output.read_bytes() == undisturbed[0].read_bytes()


def test_scores_are_forgotten_while_another_process_removes_its_lock(tmp_path, monkeypatch):
    work, remove = tmp_path / "work", os.unlink
    work.mkdir()
    for name in ("a.lock", "b.jsonl"):
        (work / name).touch()

    def remove_first(name, **where):
        remove(name, **where)
        if name == "a.lock":
            raise FileNotFoundError(name)

    monkeypatch.setattr(os, "unlink", remove_first)
    StoredScores("model", work).forget()
    assert not work.exists()


def test_images_as_bytes_give_the_same_scores(folder, tiny_reward_model, undisturbed, tmp_path, read_jsonl):
    import datasets

    rows = [row for row in read_jsonl(folder / "responses.jsonl") if isinstance(row["response"], list)]
    for row in rows:
        row["images"] = [{"bytes": (folder / image).read_bytes(), "path": None} for image in row["images"]]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "responses.parquet"))
    score.main(_arguments(tmp_path, tiny_reward_model, tmp_path / "scored.jsonl", data="responses.parquet"))
    expected = {row["id"]: row["scores"] for row in read_jsonl(undisturbed[0]) if "scores" in row}
    found = {row["id"]: row["scores"] for row in read_jsonl(tmp_path / "scored.jsonl")}
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], abs=1e-5) for key in found)
    assert "kept" in read_jsonl(tmp_path / "scored.jsonl")[0]


def test_chat_messages_are_prompts_too(model, tiny_reward_model, tmp_path, read_jsonl):
    messages = [{"role": "user", "content": "what is it?"}]
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": messages, "response": "a dog"}])
    arguments = ["--model", str(tiny_reward_model), "--dataset_name", str(tmp_path / "in.jsonl"), "--device", "cpu"]
    score.main([*arguments, "--output", str(tmp_path / "out.jsonl")])
    [row] = read_jsonl(tmp_path / "out.jsonl")
    assert row["score"] == pytest.approx(model.score([messages], None, ["a dog"]).item(), abs=1e-6)


def _broken_jpeg() -> bytes:
    buffer = io.BytesIO()
    picture("red").save(buffer, "JPEG")
    return buffer.getvalue()[:300]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"query": None}, "expected 'query' or 'prompt', and neither is there"),
        ({"prompt": "what?"}, "expected 'query' or 'prompt', and both is there"),
        ({"query": ""}, "expected a text, and this one is empty"),
        ({"response": None}, "field 'response"),
        ({"response": []}, "field 'response': expected at least one response"),
        ({"response": ["a", 1]}, "field 'response"),
        ({"response": "<|image_pad|>"}, "field 'response': the text contains <|image_pad|>"),
        ({"response": "half \ud83d"}, "half of a surrogate pair at character"),
        ({"beside": ["\ud83d"]}, "half of a surrogate pair at character"),
        (
            {
                "query": None,
                "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
            },
            "field 'images': expected as many as the messages have places (1), found 0",
        ),
        ({"image": "missing.png"}, "missing.png: no such image file"),
        ({"image": "broken.jpg"}, "broken.jpg: cannot be decoded"),
        ({"images": 7}, "field 'images': expected a path, bytes or an image"),
    ],
)
def test_a_malformed_row_is_named_before_the_model_is_loaded(change, problem, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(_broken_jpeg())
    good = {"query": "what?", "response": "this"}
    rows = [good, {**good, **change}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["--model", "no-such-model", "--dataset_name", str(tmp_path / "in.jsonl")]
    with pytest.raises(SystemExit) as stopped:
        score.main([*arguments, "--output", str(tmp_path / "out.jsonl")])
    assert f"{tmp_path / 'in.jsonl'}:2: " in stopped.value.code
    assert problem in stopped.value.code


def test_a_score_that_is_not_a_number_ends_the_run(folder, tiny_reward_model, tmp_path, monkeypatch):
    import torch

    from models.reward.model import Qwen2VLForRewardModel

    monkeypatch.setattr(
        Qwen2VLForRewardModel, "score", lambda self, *rows, **_: torch.full((len(rows[0]),), torch.nan)
    )
    with pytest.raises(SystemExit, match="the score is nan of the response 'it is shape"):
        score.main(_arguments(folder, tiny_reward_model, tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_that_is_none_is_named(folder, tiny_model, tmp_path):
    with pytest.raises(SystemExit, match="cannot be loaded as a reward model: .*model_type: expected that of"):
        score.main(_arguments(folder, tiny_model, tmp_path / "out.jsonl"))


# -- evaluation with a model ------------------------------------------------------------------------------------------


def _bench(data: Path, model: Path, output: Path, *more: str) -> dict:
    reward_bench.main(
        ["--model", str(model), "--dataset_name", str(data), "--output_dir", str(output), "--device", "cpu", *more]
    )
    return json.loads((output / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture
def preferences(folder, tmp_path, read_jsonl) -> Path:
    rows = [row for row in read_jsonl(folder / "responses.jsonl") if isinstance(row["response"], list)]
    for row in rows:
        row["images"] = [str(folder / image) for image in row["images"]]
    write_jsonl(tmp_path / "test.jsonl", rows)
    return tmp_path / "test.jsonl"


def test_a_model_and_its_scores_are_evaluated_alike(preferences, undisturbed, tiny_reward_model, tmp_path, read_jsonl):
    with_model = _bench(preferences, tiny_reward_model, tmp_path / "model", "--batch_size", "4")
    write_jsonl(tmp_path / "scores.jsonl", [row for row in read_jsonl(undisturbed[0]) if "scores" in row])
    reward_bench.main(["--scores", str(tmp_path / "scores.jsonl"), "--output_dir", str(tmp_path / "scores")])
    with_scores = json.loads((tmp_path / "scores" / "summary.json").read_text(encoding="utf-8"))
    for key in ("groups", "overall", "macro", "items", "coverage", "rows", "equal_ranks"):
        assert with_model[key] == with_scores[key]
    assert with_model["model"] == tiny_reward_model.name
    assert with_model["items"] > 20
    names = sorted(path.name.split("_2")[0] for path in (tmp_path / "model").iterdir())
    assert names == ["calibration.png", "scores.png", "summary.json", "tiny_reward"]


def test_bad_rows_are_an_error_or_counted(preferences, tiny_reward_model, tmp_path):
    good = preferences.read_text(encoding="utf-8").splitlines()
    bad = json.dumps({"id": "bad", "query": "what?", "images": ["missing.png"], "response": ["a", "b"],
                      "human_ranking": [0, 1]})  # fmt: skip
    tied = json.dumps({"id": "tied", "query": "what?", "response": ["a", "b"], "human_ranking": [1, 1]})
    preferences.write_text("\n".join([*good[:3], bad, tied]) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"test.jsonl:4: field 'images': .*missing.png: no such image file"):
        _bench(preferences, tiny_reward_model, tmp_path / "out")
    found = _bench(preferences, tiny_reward_model, tmp_path / "out", "--skip_bad_rows")
    assert (found["rows"], found["bad_rows"], found["equal_ranks"]) == (5, 1, 1)


def test_chat_messages_may_be_queries_of_preferences(tiny_reward_model, tmp_path):
    query = [{"role": "user", "content": "what is it?"}]
    row = {"id": "mmmu_1", "query": query, "response": ["a dog", "a cat"], "human_ranking": [0, 1]}
    write_jsonl(tmp_path / "test.jsonl", [row, row])
    found = _bench(tmp_path / "test.jsonl", tiny_reward_model, tmp_path / "out")
    assert (found["items"], found["duplicates"], found["groups"]["reasoning"]["n"]) == (1, 1, 1)


def test_a_token_for_an_image_is_named_with_its_row_before_the_model_is_loaded(tiny_family, tmp_path, monkeypatch):
    monkeypatch.setattr(StoredScores, "_load", lambda _: pytest.fail("loaded"))
    stored = StoredScores(str(tiny_family("gemma3")), tmp_path / "work")
    requests = [ScoreRequest("why?", (), ("a", "b")), ScoreRequest("why?", (), ("a", "b <start_of_image>"))]
    with pytest.raises(RecordError, match=r"rows\.jsonl: row 2: field 'response': the text contains <start_of_image>"):
        stored.score(requests, "rows.jsonl")
