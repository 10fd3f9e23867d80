"""Rows of a task for a trainer: token counts equal the processor's, images open when they are needed."""

import pytest
from PIL import Image

from data.io.records import RecordError
from models.families.loading import image_reader, load_processor
from trainers.setup.task_data import check_lengths, count_tokens, to_dataset


@pytest.fixture(scope="module")
def processor(tiny_model):
    return load_processor(str(tiny_model), max_pixels=1024)


def row(text: str = "Look.", images=(), number: int = 0) -> dict:
    return {"id": number, "prompt": [{"role": "user", "content": text}], "images": list(images), "answers": ["a"]}


def tokens_as_trained(processor, given: dict) -> int:
    """What the processor really makes of a row, image tokens included."""
    parts = [{"type": "image"}] * len(given["images"])
    content = [*parts, {"type": "text", "text": given["prompt"][0]["content"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    dataset = to_dataset([given], image_reader(processor))
    images = [dataset[0]["images"]] if given["images"] else None
    return len(processor(text=[text], images=images)["input_ids"][0])


@pytest.mark.parametrize(
    "sizes", [[], [(64, 64)], [(200, 30)], [(9, 9)], [(64, 64), (300, 200), (33, 31)], [(1000, 8)]]
)
def test_counted_tokens_are_those_of_the_processor(processor, tmp_path, sizes):
    paths = []
    for number, size in enumerate(sizes):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", size).save(paths[-1])
    given = row("How many circles, and what about 1,000 of them?", paths)
    counts = count_tokens([given], "data", image_reader(processor), processor)
    assert counts.longest == tokens_as_trained(processor, given)
    assert counts.exact


def test_without_a_tokenizer_the_count_is_never_too_low(processor):
    rows = [row("naïve café 12345 !!!"), row("word " * 50)]
    bounds = image_reader(processor)
    exact, bound = count_tokens(rows, "data", bounds, processor), count_tokens(rows, "data", bounds, None)
    assert bound.longest >= exact.longest
    assert not bound.exact


def test_the_longest_row_is_named(processor):
    counts = count_tokens([row(), row("word " * 90, number=7)], "my.jsonl", image_reader(processor), processor)
    with pytest.raises(RecordError, match=r"my\.jsonl: row 7: the prompt has \d+ tokens .*at most 50 \(my_limit\)"):
        check_lengths(counts, "my.jsonl", 50, "my_limit")
    check_lengths(counts, "my.jsonl", counts.longest, "my_limit")


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|video_pad|>"])
def test_a_text_that_promises_an_image_is_refused(processor, token):
    with pytest.raises(RecordError, match=r"data: row 3: field 'prompt': the text contains <\|"):
        count_tokens([row(f"see {token}", number=3)], "data", image_reader(processor), processor)


def test_tokens_of_another_family_are_refused_by_its_processor_in_answers_too(tiny_family):
    """Data of no model have use for Qwen's; those of others are words to a model that does not have them."""
    processor = load_processor(str(tiny_family("gemma3")))
    for field, text in (("completion", "see <image_soft_token>"), ("gold", "<start_of_image>")):
        for value in (text, [{"role": "assistant", "content": text}]):
            given = row() | {field: value, "id": 4}
            with pytest.raises(RecordError, match=rf"data: row 4: field '{field}': the text contains <.*image"):
                count_tokens([given], "data", image_reader(processor), processor)
    assert count_tokens([row("a <|start_of_image|>")], "data", image_reader(processor), processor).exact


def test_dataset_gives_columns_and_resized_images(processor, tmp_path):
    path = str(tmp_path / "wide.png")
    Image.new("RGB", (640, 320)).save(path)
    dataset = to_dataset([row(images=[path]), row(number=1)], image_reader(processor))
    first = dataset[0]
    assert set(first) == {"answers", "id", "images", "prompt"}
    width, height = first["images"][0].size
    assert width * height <= 1024
    assert width % 16 == height % 16 == 0
    assert dataset[1]["images"] == []


def test_dataset_without_any_image_has_no_such_column(processor):
    assert set(to_dataset([row()], image_reader(processor))[0]) == {"answers", "id", "prompt"}


def test_the_right_answer_is_kept_from_the_trainer(processor):
    assert "gold" not in to_dataset([{**row(), "gold": "secret"}], image_reader(processor))[0]
