"""Pictures of data sets that a trainer is given, of any form that TRL reads: seen and refused as those of a file."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from data.io.images import ImageError
from data.io.records import RecordError
from data.rows.given_images import with_images_read, with_streamed_images_read
from trainers.grpo import GRPOConfig, GRPOTrainer
from trainers.sft import SFTConfig, SFTTrainer

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 2}
ASKED = [{"role": "user", "content": "what is it?"}]
TOLD = [*ASKED, {"role": "assistant", "content": "a square"}]


def _with_part(image: object) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]}]


@pytest.fixture
def seen() -> Image.Image:
    """A red square on white, as a person sees the pictures below."""
    picture = Image.new("RGB", (56, 56), "white")
    picture.paste("red", (10, 10, 30, 30))
    return picture


@pytest.fixture
def drawn(tmp_path) -> dict[str, str]:
    """Mode -> file."""
    files = {mode: str(tmp_path / f"{mode.replace(';', '')}.png") for mode in ("RGBA", "P", "LA", "I;16")}
    square = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    square.paste((255, 0, 0, 255), (10, 10, 30, 30))
    square.save(files["RGBA"])
    palette = Image.new("P", (56, 56), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (10, 10, 30, 30))
    palette.save(files["P"], transparency=0)
    Image.new("LA", (56, 56), (0, 0)).save(files["LA"])
    Image.fromarray(np.full((56, 56), 65535, dtype=np.uint16)).save(files["I;16"])
    return files


def _same(found: Image.Image, expected: Image.Image) -> bool:
    return found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
@pytest.mark.parametrize("text", [{"prompt": ASKED}, {"messages": TOLD}, {"text": "a square"}])
@pytest.mark.parametrize("name", ["image", "images", "image_path", "photo", "imgs"])
def test_f03_transparent_pictures_are_on_white_under_every_name(drawn, seen, mode, text, name):
    for value in (drawn[mode], Image.open(drawn[mode])):
        rows = Dataset.from_list([{**text, name: [value] if name.endswith("s") else value}])
        row = with_images_read(rows, "train_dataset")[0]
        assert _same(row["image"] if name == "image" else row["images"][0], seen)


@pytest.mark.parametrize("mode", ["LA", "I;16"])
def test_f03_other_modes_are_white(drawn, mode):
    row = with_images_read(Dataset.from_list([{"prompt": ASKED, "image": drawn[mode]}]), "train_dataset")[0]
    assert _same(row["image"], Image.new("RGB", (56, 56), "white"))


@pytest.mark.parametrize("name", ["prompt", "messages"])
def test_a_picture_within_a_message_leaves_its_place(drawn, seen, name):
    rows = [{name: _with_part(drawn["RGBA"])}, {name: [{"role": "user", "content": [{"type": "text", "text": "no"}]}]}]
    first, second = with_images_read(Dataset.from_list(rows), "train_dataset")
    assert _same(first["images"][0], seen)
    assert first[name][0]["content"][0]["type"] == "image"
    assert "image" not in first[name][0]["content"][0]
    assert second["images"] == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ASKED, "video": "a.mp4"}, "field 'video': a row's images stand in 'image' or 'images'"),
        ({"messages": TOLD, "frames": ["a.png"]}, "field 'frames': a row's images stand in"),
        ({"text": "a", "screenshot": "a.png"}, "field 'screenshot': a row's images stand in"),
        ({"prompt": ASKED, "image": "https://host/a.png"}, "field 'image': .*addresses are not fetched"),
        ({"messages": _with_part("http://host/a.png")}, "field 'messages.0.content.0.image': .*addresses are not"),
        ({"messages": TOLD, "images": ["nothing.png"]}, "nothing.png: no such image file"),
        ({"prompt": _with_part("a.png"), "images": ["b.png"]}, "content.0.image': expected a place, as 'images' has"),
    ],
)
def test_f02_f22_what_is_no_picture_is_refused_with_its_row(row, message):
    with pytest.raises(RecordError, match=f"train_dataset, row 2: .*{message}") as found:
        with_images_read(Dataset.from_list([dict.fromkeys(row), row]), "train_dataset")
    assert "row 1" not in str(found.value)


def test_f02_f03_pictures_of_streamed_rows(tiny_model, drawn, seen, tmp_path):
    rows = [{"prompt": ASKED, "image_path": path} for path in (drawn["RGBA"], drawn["P"], "nothing.png")]
    args = GRPOConfig(str(tmp_path), num_generations=2, max_steps=1, **QUIET)
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = GRPOTrainer(str(tiny_model), lambda completions, **_: [0.0] * len(completions), args, stream)
    read = iter(trainer.train_dataset)
    assert all(_same(next(read)["images"][0], seen) for _ in range(2))
    with pytest.raises(ImageError, match="train_dataset, row 3: field 'images': .*nothing.png: no such image file"):
        next(read)
    bad = Dataset.from_list([{"prompt": ASKED, "image": "https://host/a.png"}]).to_iterable_dataset()
    with pytest.raises(RecordError, match="train_dataset, row 1: .*addresses are not fetched"):
        with_streamed_images_read(bad, "train_dataset")
    texts = Dataset.from_list([{"prompt": ASKED}]).to_iterable_dataset()
    assert with_streamed_images_read(texts, "train_dataset") is texts


def test_rows_without_pictures_stay_as_they_are():
    rows = Dataset.from_list([{"prompt": ASKED}])
    assert with_images_read(rows, "train_dataset") is rows


def test_f02_f03_trainers_see_them(tiny_model, drawn, seen, tmp_path):
    rows = Dataset.from_list([{"prompt": ASKED, "image_path": drawn["RGBA"]}] * 2)
    args = GRPOConfig(str(tmp_path), num_generations=2, **QUIET)
    trainer = GRPOTrainer(str(tiny_model), lambda completions, **_: [0.0] * len(completions), args, rows, {"a": rows})
    assert _same(trainer.train_dataset[0]["images"][0], seen)
    assert _same(trainer.eval_dataset["a"][0]["images"][0], seen)

    rows = Dataset.from_list([{"messages": TOLD, "image_path": drawn["P"]}] * 2)
    trainer = SFTTrainer(str(tiny_model), SFTConfig(str(tmp_path), **QUIET), train_dataset=rows)
    batch = next(iter(trainer.get_train_dataloader()))
    told = Dataset.from_list([{"messages": TOLD, "images": [seen]}] * 2)
    expected = SFTTrainer(str(tiny_model), SFTConfig(str(tmp_path), **QUIET), train_dataset=told)
    assert batch["pixel_values"].equal(next(iter(expected.get_train_dataloader()))["pixel_values"])
