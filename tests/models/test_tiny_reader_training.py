"""The tiny VLM that reads answers from shown examples: training sees what the plain model sees, and it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor

from data.dialects import KEYS, NOUNS, Scene, answer_of, training_and_test_scenes
from data.prompts import in_context_messages
from models import tiny_reader_training
from models.tiny_reader import main
from models.tiny_reader_training import (
    NO_KEY,
    TURNS,
    Conversations,
    Reader,
    TurnTokens,
    build,
    image_features,
    image_tokens,
    make_batch,
    mirror,
    read_images,
    reading_accuracy,
    train_reading,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """One scene of each dialect, colour and shape."""
    kinds = {(scene.dialect, scene.color, scene.shape): scene for scene in training_and_test_scenes()[0]}
    return list(kinds.values())


def _train(folder: Path, scenes: list[Scene], seed: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_reader_training, "training_and_test_scenes", lambda: (scenes, scenes))
        main(["--output_dir", str(folder), "--seed", str(seed), "--vision_epochs", "1", "--reading_steps", "3"])
    return folder


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory) -> Path:
    """A model after a few steps."""
    return _train(tmp_path_factory.mktemp("vlm"), scenes, seed=3)


@pytest.fixture(scope="module")
def loaded(trained):
    model = AutoModelForImageTextToText.from_pretrained(trained, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(trained)


def _draw(scenes, turns: int, seed: int) -> tuple[list[Scene], np.ndarray]:
    rng = np.random.default_rng(seed)
    shown = [scenes[number] for number in rng.choice(len(scenes), turns, replace=False)]
    return shown, rng.permutation(len(NOUNS))[: len(KEYS)]


def _plain_inputs(processor, shown: list[Scene], numbers: np.ndarray) -> dict:
    """The last scene's question, after the others with their answers, as a user of the model would put it."""
    nouns = {key: NOUNS[number] for key, number in zip(KEYS, numbers, strict=True)}
    *examples, query = shown
    messages = in_context_messages(query.question, [(scene.question, answer_of(scene, nouns)) for scene in examples])
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images = [Image.open(scene.image).convert("RGB") for scene in shown]
    return processor(text=[text], images=images, return_tensors="pt")


@pytest.fixture(scope="module")
def prepared(scenes, loaded):
    """(rows of the images, their features, tokens of turns, reader)"""
    model, processor = loaded
    images = read_images(scenes, processor)
    return images.rows, image_features(model.model.visual, images), TurnTokens(processor), Reader(model)


@torch.no_grad()
def test_training_sees_what_the_plain_processor_and_model_see(scenes, loaded, prepared):
    model, processor = loaded
    rows, features, parts, reader = prepared
    for prompt in range(60):
        shown, numbers = _draw(scenes, turns=1 + prompt % TURNS, seed=prompt)
        batch = make_batch([shown], numbers[None], parts, rows)
        inputs = _plain_inputs(processor, shown, numbers)
        length = inputs["input_ids"].shape[1]
        assert batch.tokens[0, :length].tolist() == inputs["input_ids"][0].tolist()
        positions, _ = model.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
        )
        assert torch.equal(batch.positions[:, :, :length], positions)
        asked = batch.places[:, 1] == length - 1
        logits = reader.logits(reader(batch, features), batch)[asked]
        torch.testing.assert_close(logits, model(**inputs).logits[:, -1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_answers_of_padded_batches_are_those_of_single_conversations(scenes, prepared):
    rows, features, parts, reader = prepared
    drawn = [_draw(scenes, turns, seed=turns) for turns in (1, 5, 3)]
    together = make_batch([shown for shown, _ in drawn], np.stack([numbers for _, numbers in drawn]), parts, rows)
    alone = [make_batch([shown], numbers[None], parts, rows) for shown, numbers in drawn]
    expected = torch.cat([reader.logits(reader(batch, features), batch) for batch in alone])
    torch.testing.assert_close(reader.logits(reader(together, features), together), expected, atol=1e-4, rtol=1e-4)
    assert together.labels.tolist() == [label for batch in alone for label in batch.labels.tolist()]


@torch.no_grad()
def test_quick_vision_gives_what_the_tower_gives(scenes, loaded):
    model, processor = loaded
    images = read_images(scenes[:5], processor)
    grid = torch.tensor([[1, 8, 8]] * 5)
    expected = model.model.visual(images.pixels.flatten(0, 1), grid_thw=grid).pooler_output
    torch.testing.assert_close(image_tokens(model.model.visual, images.pixels).flatten(0, 1), expected)


def test_mirrored_pixels_are_those_of_the_mirrored_image(scenes, loaded):
    _, processor = loaded
    image = Image.open(scenes[0].image).convert("RGB")
    plain, mirrored = (
        processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        for picture in (image, ImageOps.mirror(image))
    )
    torch.testing.assert_close(mirror(plain.unsqueeze(0))[0], mirrored)


def test_which_nouns_tell_an_answer(scenes, loaded):
    """The third turn's shape is told by the first, its colour by the second; the fourth is of another dialect."""
    kinds = {(scene.dialect.name, scene.color, scene.shape): scene for scene in scenes}
    shown = [
        kinds["what shape is present", "blue", "circle"],
        kinds["what shape is present", "red", "triangle"],
        kinds["what shape is present", "red", "circle"],
        kinds["what shape is in the image", "red", "circle"],
    ]
    parts = TurnTokens(loaded[1])
    numbers = np.arange(len(KEYS))
    batch = make_batch([shown], numbers[None], parts, {scene.image: 0 for scene in shown})
    tokens = [batch.tokens[0, row].tolist() for row in batch.telling_nouns()]

    def noun(key: tuple[str, str], place: int) -> int:
        return parts.nouns[place][KEYS.index(key)]

    circle, red = noun(("what shape is present", "circle"), 0), noun(("what shape is present", "red"), 1)
    assert tokens == [[], [], [], [], [], [], [circle], [red], [], [], []]
    assert (batch.asked_keys == NO_KEY).tolist() == [False, False, True] * 3 + [False, True]
    assert batch.labels[6:9].tolist() == [circle, red, parts.end[0]]


def test_the_same_seed_gives_the_same_weights_and_another_one_others(scenes, trained, tmp_path):
    again = _train(tmp_path, scenes, seed=3)
    assert (again / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    first, other = (dict(build(seed)[0].named_parameters()) for seed in (3, 4))
    assert all(not torch.equal(value, other[name]) for name, value in first.items() if value.std() > 0)


def test_reading_changes_the_language_model_and_leaves_the_tower(scenes):
    model, processor = build(seed=0)
    images, parts, reader = read_images(scenes, processor), TurnTokens(processor), Reader(model)
    model.set_attn_implementation("eager")
    before = {name: value.clone() for name, value in model.named_parameters()}
    features = image_features(model.model.visual, images)
    train_reading(reader, features, Conversations(scenes, parts, images.rows, seed=0), steps=2, batch_size=8)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("model.visual."), name
        assert value.isfinite().all(), name


def test_numbers_of_steps_that_train_nothing_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path / "out"), "--reading_steps", "0"])
    assert "--reading_steps: expected at least 1, found 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_reads_answers_about_images_it_never_saw(tmp_path, capsys):
    main(["--output_dir", str(tmp_path)])
    share = float(capsys.readouterr().out.split(" of the nouns")[0].split()[-1])
    assert share > 0.95
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    _, held_out = training_and_test_scenes()
    images, parts = read_images(held_out, processor), TurnTokens(processor)
    model.set_attn_implementation("eager")
    accuracy = reading_accuracy(
        Reader(model), image_features(model.model.visual, images), Conversations(held_out, parts, images.rows, seed=9)
    )
    assert accuracy > 0.95

    right = []
    kinds = {}
    for scene in held_out:
        kinds.setdefault((scene.dialect, scene.color, scene.shape), []).append(scene)
    for number, (query, example, *_) in enumerate(alike for alike in kinds.values() if len(alike) > 1):
        _, numbers = _draw(held_out, turns=1, seed=number)
        inputs = _plain_inputs(processor, [example, query], numbers)
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        nouns = {key: NOUNS[value] for key, value in zip(KEYS, numbers, strict=True)}
        right.append(processor.tokenizer.decode(generated, skip_special_tokens=True) == answer_of(query, nouns))
    assert len(right) > 60
    assert np.mean(right) > 0.9
