"""Preferences between generated images, pairs and groups: from rows to a trained model and its scores."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from preference_runs import COLOURS, settings

from data.io.records import RecordError
from data.preferences import load_preferences
from models.families.loading import image_reader, load_processor
from models.reward.encoding import encode_groups
from models.reward.inputs import ResponseGroup
from models.reward.load import load_reward_model
from rewards import reward_bench, score
from trainers.preferences.data import check_record_lengths
from trainers.reward import RewardConfig, RewardTrainer
from trainers.setup.model import ModelInfo


def part(colour):
    return {"type": "image", "image": f"{colour}.png"}


@pytest.fixture
def rows(tmp_path):
    """Three answers each to a prompt, with an image where one is to be changed: images, and words beside."""
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (32, 32 if number % 2 else 16), colour).save(tmp_path / f"{colour}.png")
    made = []
    for number, colour in enumerate(COLOURS):
        other, third = COLOURS[number - 1], COLOURS[number - 2]
        row = {"id": number, "query": f"Draw something {colour}.", "human_ranking": [2, 0, 1]}
        row |= {"image": f"{third}.png"} if number % 2 else {}
        first = {"role": "assistant", "content": [part(other)]}
        made.append(row | {"response": [first, [{"type": "text", "text": "Here:"}, part(colour)], "I cannot draw."]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return tmp_path / "rows.jsonl"


def scores_of(model, records) -> list[float]:
    asked = [(record.prompt(), record.images, response) for record in records for response in record.response]
    return model.score(*map(list, zip(*asked, strict=True)), batch_size=8).tolist()


FAMILIES = ["qwen2_vl", "qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "internvl"))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
def test_trained_saved_and_used_by_every_command(tiny_family, tmp_path, rows, family, loss):
    records = load_preferences(rows)[0]
    shared = family != "gemma3"
    changes = {"max_steps": 2, "learning_rate": 1e-2, "shared_prefix": shared, "shared_prefix_check": shared}
    args = RewardConfig(**settings(output_dir=str(tmp_path / "run"), loss_type=loss, **changes))
    trainer = RewardTrainer(str(tiny_family(family)), args, train_dataset=records, eval_dataset=records)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert len(changed) > 0.9 * len(before)
    assert any("visual" in name or "vision" in name for name in changed)
    assert "eval_accuracy" in trainer.evaluate()
    sample = trainer.samples_of(records[:1])[0]
    assert sample.completions[1] == f"Here: [{tmp_path / 'red.png'}]"

    trainer.save_model(str(tmp_path / "saved"))
    loaded, processor = load_reward_model(tmp_path / "saved", device="cpu", dtype=torch.float32)
    trainer.model.processor = processor
    expected = scores_of(trainer.model, records)
    assert torch.tensor(expected).std() > 1e-3
    assert scores_of(loaded, records) == pytest.approx(expected, abs=1e-6)

    saved = ["--model", str(tmp_path / "saved"), "--dataset_name", str(rows), "--device", "cpu"]
    score.main([*saved, "--output", str(tmp_path / "scored.jsonl")])
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one for row in scored for one in row["scores"]] == pytest.approx(expected, abs=1e-5)
    reward_bench.main([*saved, "--output_dir", str(tmp_path / "bench")])
    reward_bench.main(["--scores", str(tmp_path / "scored.jsonl"), "--output_dir", str(tmp_path / "from_scores")])
    found, again = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("bench", "from_scores"))
    assert found["items"] == again["items"] == 12
    assert found["overall"] == again["overall"]


@pytest.mark.parametrize("family", ["qwen2_vl", "internvl"])
def test_lengths_are_those_of_what_is_read(tiny_family, rows, family):
    """Of text and images, in prompt and response; a prompt's places count beside what stands at them."""
    records = load_preferences(rows)[0]
    processor = load_processor(str(tiny_family(family)))
    groups = [ResponseGroup(record.prompt(), record.images, record.response) for record in records]
    longest = int(encode_groups(processor, groups)["attention_mask"].sum(dim=1).max())
    model = ModelInfo(None, processor, image_reader(processor))
    limits = SimpleNamespace(max_length=longest + 3, max_prompt_length=None)
    check_record_lengths(records, "rows", model, None, limits)
    limits.max_length = longest - 1
    with pytest.raises(RecordError, match="max_length, response included"):
        check_record_lengths(records, "rows", model, None, limits)


def test_rows_of_one_response_with_an_image_have_one_score(tiny_reward_model, tmp_path, rows):
    row = {"query": "Draw.", "response": [part("red")]}
    several = {"query": "Draw.", "response": [[part("red")], "none"]}
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, several)), encoding="utf-8")
    words = ["--model", str(tiny_reward_model), "--dataset_name", str(tmp_path / "asked.jsonl"), "--device", "cpu"]
    score.main([*words, "--output", str(tmp_path / "scored.jsonl")])
    first, second = (json.loads(line) for line in (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines())
    assert first["response"] == row["response"]
    assert first["score"] == pytest.approx(second["scores"][0], abs=1e-5)


def test_images_that_are_no_paths_are_told_apart_in_what_is_written(rows):
    images = [{"bytes": (rows.parent / f"{colour}.png").read_bytes(), "path": None} for colour in COLOURS[:2]]
    row = {"response": [[{"type": "image", "image": image}] for image in images]}
    [stored] = score.scored_rows([row], [[0.5, 0.25]])
    names = [one[0]["text"] for one in stored["response"]]
    assert names[0] != names[1]
    assert all(name.startswith("[image ") for name in names)
