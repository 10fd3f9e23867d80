"""Responses of ranked and scored rows: every form with images, and what is wrong with a part."""

import pytest
from PIL import Image

from data.io.records import RecordError, write_jsonl
from data.preferences import PreferenceRecord, as_pairs, load_preferences
from data.rows.responses import response_images, response_label

TEXT = {"type": "text", "text": "Here it is:"}
FORMS = {
    "parts": lambda image: [TEXT, image],
    "a turn": lambda image: {"role": "assistant", "content": [TEXT, image]},
    "a list of a turn": lambda image: [{"role": "assistant", "content": [TEXT, image]}],
}


def part(image):
    return {"type": "image", "image": image}


@pytest.fixture
def folder(tmp_path):
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 24), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    return tmp_path


def load(folder, *rows, **options):
    write_jsonl(folder / "rows.jsonl", rows)
    return load_preferences(folder / "rows.jsonl", **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fields", ["ours", "TRL's"])
def test_images_in_responses_stand_in_their_parts_by_absolute_paths(folder, form, fields):
    made = [FORMS[form](part(f"{colour}.png")) for colour in ("red", "blue")]
    row = {"query": "draw a circle", "response": made, "human_ranking": [0, 1]}
    if fields == "TRL's":
        row = {"prompt": "draw a circle", "chosen": made[0], "rejected": made[1]}
    [record] = load(folder, row)[0]
    assert record.response == [[TEXT, part(str(folder / f"{colour}.png"))] for colour in ("red", "blue")]
    assert (record.images, record.human_ranking) == ([], [0, 1])


def test_the_prompt_of_trls_form_may_be_in_the_messages(folder):
    asked = {"role": "user", "content": "draw"}
    sides = [[asked, {"role": "assistant", "content": [part(f"{one}.png")]}] for one in ("red", "blue")]
    [record] = load(folder, {"chosen": sides[0], "rejected": sides[1]})[0]
    assert [response_images(one) for one in record.response] == [[str(folder / "red.png")], [str(folder / "blue.png")]]


def test_images_of_prompt_and_responses_stand_apart_in_groups_of_any_size(folder):
    made = [[part("red.png")], "I cannot.", [part("blue.png"), TEXT, part("red.png")]]
    row = {"query": "edit", "image": "blue.png", "response": made, "human_ranking": [1, 2, 0]}
    [record] = load(folder, row)[0]
    names = [(name, str(image).rsplit("/", 1)[1]) for name, image in record.images_by_field()]
    of_third = [("response.2", "blue.png"), ("response.2", "red.png")]
    assert names == [("images", "blue.png"), ("response.0", "red.png"), *of_third]
    assert [len(response_images(pair.response[0])) for pair in as_pairs(record)] == [2, 2, 1]


def test_parquet_rows_hold_bytes_and_parts_with_nulls(folder):
    from datasets import Dataset

    def stored(colour):
        image = {"bytes": (folder / f"{colour}.png").read_bytes(), "path": None}
        return [{"type": "text", "text": "Here:", "image": None}, {"type": "image", "text": None, "image": image}]

    columns = {"query": ["draw"], "response": [[stored("red"), stored("blue")]], "human_ranking": [[0, 1]]}
    Dataset.from_dict(columns).to_parquet(str(folder / "rows.parquet"))
    [record] = load_preferences(folder / "rows.parquet")[0]
    assert [one["type"] for one in record.response[0]] == ["text", "image"]
    labels = [response_label(one) for one in record.response]
    assert labels[0] != labels[1]
    assert all(label.startswith("Here: [image ") for label in labels)


def test_texts_in_parts_are_a_text():
    record = PreferenceRecord(query="?", response=[[TEXT, TEXT], "b"], human_ranking=[0, 1])
    assert record.response == ["Here it is:Here it is:", "b"]


BROKEN = {
    "missing": ([part("nowhere.png")], "field 'response.1': .*nowhere.png: no such image file"),
    "truncated": ([part("cut.png")], "field 'response.1': .*cut.png: cannot be decoded"),
    "an address": ([part("https://a.b/c.png")], "field 'response.1.0.image': .*addresses are not fetched"),
    "no image in its part": ([{"type": "image"}], "field 'response.1.0.image': expected the image itself"),
    "a number for an image": ([part(3)], "field 'response.1.0.image': expected a path, bytes or an image"),
    "a video": ([{"type": "video"}], "field 'response.1.0.type': expected parts of type text or image"),
    "further keys": ([{**part("red.png"), "alt": "x"}], "field 'response.1.0.alt': expected a part of type image"),
    "no parts": ([], "field 'response.1': expected a text, parts of texts and images, or a turn"),
    "blank text": ([{"type": "text", "text": " "}], "field 'response.1.0.text': expected a text, and this one is emp"),
    "a token for an image": ([{"type": "text", "text": "<|image_pad|>"}], "field 'response.1.0.text': .*promises an"),
    "a turn of the user": ({"role": "user", "content": "x"}, "field 'response.1.role': expected a turn of the assist"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_response_is_named_by_its_field_or_skipped_and_counted(folder, kind):
    response, message = BROKEN[kind]
    good = {"query": "draw", "response": [[part("red.png")], [part("blue.png")]], "human_ranking": [0, 1]}
    rows = [good, {**good, "response": [[part("red.png")], response]}]
    with pytest.raises(RecordError, match=f"rows.jsonl:2: {message}"):
        load(folder, *rows)
    _, counts = load(folder, *rows, skip_bad_rows=True)
    assert (counts.records, counts.skipped) == (1, 1)


def test_every_unreadable_image_of_a_file_is_named_at_once(folder):
    row = {"query": "draw", "image": "gone.png", "response": [[part("cut.png")], "b"], "human_ranking": [0, 1]}
    with pytest.raises(RecordError) as error:
        load(folder, row, {**row, "human_ranking": [0]})
    fields = [problem.split("field '")[1].split("'")[0] for problem in error.value.problems]
    assert fields == ["the row", "images", "response.0"]
