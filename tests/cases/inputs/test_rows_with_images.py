"""Images of rows, under any usual name and in every form, are read, or refused by name."""

import json
from collections import Counter

import pytest
from datasets import Dataset
from task_rows import (
    CHAT,
    EVAL,
    LOADERS,
    PLACE,
    TEXT,
    images_of,
    problem_of,
    user,
    write,
)

from data.factor_labels.clusters import FactorSet
from data.factors import Labelled, LabelledImage, load_labelled, parse_annotations, write_labelled
from data.io.images import open_image
from data.io.records import read_rows
from data.io.unreadable import Skipping
from data.tasks import load_rows
from rewards.score import load_responses, scored_rows
from rewards.scoring.inputs import read_completions

# -- images under another name ----------------------------------------------------------------------------------------

NAMES = ("image", "images", "image_path", "image_paths", "image_file", "img", "imgs", "img_path", "picture", "photo",
         "Image", "imagePath", "image_files")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", LOADERS)
def test_f02_images_under_their_usual_names_are_read(folder, kind, name):
    row, load = LOADERS[kind]
    for value in ("img/0.png", ["img/0.png"]):
        [record] = load(write(folder / "a.jsonl", {**row, name: value}))
        assert images_of(record) == [str(folder / "img" / "0.png")]


@pytest.mark.parametrize("name", ["image_bytes", "image_byte", "img_bytes", "pictureBytes"])
@pytest.mark.parametrize("kind", LOADERS)
def test_f02_a_text_where_bytes_should_be_is_no_path(folder, kind, name):
    row, load = LOADERS[kind]
    for value in ("img/0.png", ["img/0.png"], "iVBORw0KGgo="):
        problem = problem_of(write(folder / "a.jsonl", {**row, name: value}), load)
        assert f"a.jsonl:1: field '{name}': expected bytes; a path stands in 'image' (found '" in problem


MEDIA = [("video", "a.mp4"), ("videos", ["a.mp4"]), ("audio", {"bytes": None, "path": "a.wav"}),
         ("file_name", "img/0.png"), ("image_url", "https://example.com/x"), ("pixel_values", [[0.5]]),
         ("main_picture", "abc"), ("screenshot", "s.webp"), ("frames", ["f0.jpg"]),
         ("path", "a.png"), ("file_path", ["a.png"]), ("image_uri", "a"), ("clip_path", "a"),
         ("choices", [{"bytes": None, "path": "a.png"}])]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), MEDIA)
@pytest.mark.parametrize("kind", [kind for kind in LOADERS if kind != "report"])
def test_f02_media_that_nobody_reads_are_named(folder, kind, name, value):
    row, load = LOADERS[kind]
    problem = problem_of(write(folder / "a.jsonl", {**row, name: value}), load)
    assert f"a.jsonl:1: field '{name}" in problem
    assert "no other media are read" in problem or "addresses are not fetched" in problem


@pytest.mark.parametrize("kind", LOADERS)
def test_f02_two_names_with_different_images_are_refused(folder, kind):
    row, load = LOADERS[kind]
    same = {**row, "image": "img/0.png", "images": ["img/0.png"]}
    assert len(images_of(load(write(folder / "a.jsonl", same))[0])) == 1
    problem = problem_of(write(folder / "a.jsonl", {**same, "images": ["img/1.png"]}), load)
    assert "a.jsonl:1: field 'images': expected the images of 'image', or one of the two fields" in problem


@pytest.mark.parametrize(
    "fields",
    [
        {"image_id": 7}, {"num_images": 2}, {"image_caption": "a dog"}, {"has_image": True}, {"url": "https://x.org/a"},
        {"video": None}, {"frames": []}, {"audio": ""}, {"answer": "logo.png"}, {"answers": ["logo.png"]},
        {"choices": ["a.png", "b.png"]}, {"url": "https://x.org/y.jpg"}, {"question": "which is a.png"},
        {"file_type": "a.png"}, {"note": "see x.mp4"}, {"profile": "a.png"},
    ],
)  # fmt: skip
def test_f02_fields_about_media_are_no_media(folder, fields):
    assert len(load_rows(write(folder / "a.jsonl", {**CHAT, **fields}), "train")) == 1


def test_f02_texts_alone_may_name_files_where_no_reward_looks_at_images(folder):
    path = write(folder / "a.jsonl", {**EVAL, "file_name": "img/0.png"})
    assert len(read_completions(str(path), "test")) == 1


# -- images in every form, beside the file ----------------------------------------------------------------------------

PROMPTS = {"preferences": "query", "score": "query", "chat": "prompt", "groups": "prompt", "eval": "prompt"}
"""Kinds of rows whose prompts may be messages, and the field of the prompt."""


def with_part(kind, image) -> dict:
    return {**LOADERS[kind][0], PROMPTS[kind]: user({"type": "image", "image": image}, TEXT)}


@pytest.mark.parametrize("kind", PROMPTS)
def test_f22_images_inside_parts_are_found_beside_the_file(folder, kind):
    for image in ("img/0.png", {"path": "img/0.png"}, {"bytes": None, "path": "img/0.png"}):
        [record] = LOADERS[kind][1](write(folder / "a.jsonl", with_part(kind, image)))
        prompt = record[PROMPTS[kind]] if isinstance(record, dict) else record.prompt
        assert images_of(record) == [str(folder / "img" / "0.png")]
        assert (prompt() if kind == "preferences" else prompt) == user(PLACE, TEXT)


BROKEN = {
    "img/no.png": "no such image file",
    "img/broken.png": "not an image, or of an unknown format",
    "http://x.org/a.png": "addresses are not fetched",
}


@pytest.mark.parametrize("image", BROKEN)
@pytest.mark.parametrize("kind", PROMPTS)
def test_f19_a_broken_image_inside_messages_is_named_with_its_row(folder, kind, image):
    (folder / "img" / "broken.png").write_bytes(b"no image")
    path = write(folder / "a.jsonl", {**with_part(kind, "img/0.png"), "id": "good"}, with_part(kind, image))
    problem = problem_of(path, LOADERS[kind][1])
    assert f"{path}:2: field '" in problem
    assert BROKEN[image] in problem


@pytest.mark.parametrize("kind", PROMPTS)
def test_f19_broken_bytes_inside_messages_are_named_with_their_row(folder, kind):
    good = (folder / "img" / "0.png").read_bytes()
    images = [{"bytes": content, "path": None} for content in (good, good[:60])]
    rows = [{**with_part(kind, image), "id": str(number)} for number, image in enumerate(images)]
    Dataset.from_list(rows).to_parquet(folder / "a.parquet")
    assert f"{folder / 'a.parquet'}, row 2: field 'images': " in problem_of(folder / "a.parquet", LOADERS[kind][1])


def test_f19_pictures_inside_messages_are_left_out_of_scored_rows(folder):
    content = (folder / "img" / "0.png").read_bytes()
    Dataset.from_list([with_part("score", {"bytes": content, "path": None})]).to_parquet(folder / "a.parquet")
    rows, requests = load_responses(folder / "a.parquet", "test")
    [written] = scored_rows(rows, [[0.5, 1.5]])
    assert json.loads(json.dumps(written))["query"][0]["content"][0] == {"type": "image", "text": None}
    assert requests[0].images == ({"bytes": content, "path": None},)


@pytest.mark.parametrize("kind", LOADERS)
def test_f14_paths_of_objects_are_beside_the_file(folder, kind):
    row, load = LOADERS[kind]
    for value in ({"path": "img/0.png"}, [{"bytes": None, "path": "img/0.png"}]):
        [record] = load(write(folder / "a.jsonl", {**row, "image": value}))
        assert images_of(record) == [str(folder / "img" / "0.png")]


@pytest.mark.parametrize("kind", LOADERS)
def test_f15_a_column_of_bytes_is_read(folder, kind):
    row, load = LOADERS[kind]
    content = (folder / "img" / "0.png").read_bytes()
    Dataset.from_list([{**row, "image": content}]).to_parquet(folder / "a.parquet")
    [record] = load(folder / "a.parquet")
    assert images_of(record) == [{"bytes": content, "path": None}]
    Dataset.from_list([{**row, "image": content[:60]}]).to_parquet(folder / "a.parquet")
    assert f"{folder / 'a.parquet'}, row 1: field 'images': " in problem_of(folder / "a.parquet", load)


FACTORS = {"filter_factor_texts": ["too dark"]}


def factors_of(path):
    return parse_annotations(read_rows(path), path.parent)


@pytest.mark.parametrize(
    "fields", [{"image_path": {"path": "img/0.png"}}, {"image": "img/0.png"}, {"imgs": ["img/0.png"]}]
)
def test_f14_images_of_factors_are_read_as_all_others(folder, fields):
    [record] = factors_of(write(folder / "a.jsonl", {**FACTORS, **fields}))
    assert record.image_path == str(folder / "img" / "0.png")
    for other, problem in (("img/no.png", "no such image file"), (["img/0.png", "img/1.png"], "expected one image")):
        path = write(folder / "a.jsonl", {**FACTORS, next(iter(fields)): other})
        assert f"a.jsonl:1: field 'image_path': {problem}" in problem_of(path, factors_of).replace(
            str(folder / "img/no.png: "), ""
        )


def test_f15_bytes_of_factors_are_read_and_written_as_files(folder):
    contents = [(folder / "img" / f"{number}.png").read_bytes() for number in range(2)]
    rows = [{**FACTORS, "image": {"bytes": content, "path": None}} for content in contents]
    Dataset.from_list(rows).to_parquet(folder / "a.parquet")
    records = factors_of(folder / "a.parquet")
    assert [record.image_path["bytes"] for record in records] == contents
    factors = FactorSet(
        encoder="none", threshold=0.5, factors=[{"id": "dark", "name": "too dark", "texts": ["too dark"]}]
    )
    labelled = [LabelledImage(**record.model_dump(), factors=["dark"]) for record in records]
    write_labelled(folder / "out", Labelled({"train": labelled}, Counter()), factors, Skipping(False))
    again = load_labelled(folder / "out", "train", ["dark"])
    assert [open_image(record.image_path).tobytes() for record in again] == [
        open_image(one).tobytes() for one in contents
    ]
    Dataset.from_list([*rows, rows[0]]).to_parquet(folder / "a.parquet")
    problem = problem_of(folder / "a.parquet", factors_of)
    assert "row 3: field 'image_path': an image given as dict is also that of" in problem
    Dataset.from_list([{**FACTORS, "image": contents[0][:60]}]).to_parquet(folder / "a.parquet")
    assert "row 1: field 'image_path': an image given as" in problem_of(folder / "a.parquet", factors_of)


def test_f22_the_first_prompt_of_a_completion_has_its_places(folder):
    """`rewards.eval`, where a reward looks at images; its other columns are not prompts."""
    read = LOADERS["eval"][1]
    row = {**EVAL, "question": "what <image>?", "image": "img/0.png"}
    [found] = read(write(folder / "a.jsonl", row))
    assert found["question"] == user({"type": "text", "text": "what "}, PLACE, {"type": "text", "text": "?"})
    problem = problem_of(write(folder / "a.jsonl", {**row, "question": user(PLACE, PLACE)}), read)
    assert "a.jsonl:1: field 'images': expected as many as the messages have places (2), found 1" in problem
    problem = problem_of(write(folder / "a.jsonl", {**EVAL, "prompt": [{"role": "human", "content": "x"}]}), read)
    assert "a.jsonl:1: field 'prompt.0.role': expected system, user, assistant, tool" in problem
    path = write(folder / "a.jsonl", {**EVAL, "prompt": user(PLACE)})
    assert read_completions(str(path), "test")[0]["prompt"] == user(PLACE)
