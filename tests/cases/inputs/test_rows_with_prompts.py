"""Rows with prompts of their own: the places of images in them, and what is refused by name."""

import pytest
from task_rows import (
    CHAT,
    FIRST,
    GROUP,
    LOADERS,
    PLACE,
    ROWS_WITH_PROMPTS,
    TEN,
    TEXT,
    VQA,
    chat,
    problem_of,
    user,
    write,
)

from data.candidate_groups import load_groups
from data.io.records import RecordError
from data.rows.chat import RESERVED
from data.tasks import load_rows
from data.vqa import load_records
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import load_stored_groups

# -- rows with their own prompt ---------------------------------------------------------------------------------------


"""Readers of rows that bring their own prompt, which are as strict as each other, and as liberal."""


@pytest.mark.parametrize("read", ROWS_WITH_PROMPTS)
def test_f22_images_inside_parts_come_out_in_order(folder, read):
    second = {"type": "image", "image": "img/1.png"}
    row = read(folder, prompt=user(second, TEXT, FIRST))
    assert row["images"] == [str(folder / "img" / f"{number}.png") for number in (1, 0)]
    assert row["prompt"] == user(PLACE, TEXT, PLACE)


@pytest.mark.parametrize("read", ROWS_WITH_PROMPTS)
def test_f22_images_in_parts_and_beside_them_must_be_the_same(folder, read):
    assert len(read(folder, prompt=user(FIRST, TEXT), images=["img/0.png"])["images"]) == 1
    with pytest.raises(RecordError, match="a.jsonl:1: field 'images': expected none beside the images that the parts"):
        read(folder, prompt=user(FIRST, TEXT), images=["img/1.png"])


@pytest.mark.parametrize("read", ROWS_WITH_PROMPTS)
def test_f22_a_prompt_may_be_a_text(folder, read):
    assert read(folder, prompt="what?")["prompt"] == [{"role": "user", "content": "what?"}]


@pytest.mark.parametrize("read", ROWS_WITH_PROMPTS)
def test_f22_places_and_plain_texts_together(folder, read):
    """TRL would put every image once more before a plain text."""
    turns = [*user(PLACE, TEXT), {"role": "assistant", "content": "a"}, {"role": "user", "content": "and?"}]
    row = read(folder, prompt=turns, images=["img/0.png"])
    assert [part["type"] for turn in row["prompt"] for part in turn["content"]] == ["image", "text", "text", "text"]


REFUSED = {
    "two for one place": ({"prompt": user(PLACE, TEXT), "images": ["img/0.png", "img/1.png"]}, "field 'images'"),
    "no image for a place": ({"prompt": user(PLACE, TEXT)}, "field 'images'"),
    "an image without a place": ({"prompt": user(TEXT), "image": "img/0.png"}, "field 'images'"),
    "some parts with images": ({"prompt": user(PLACE, FIRST)}, "1 of 2 image parts hold an image"),
    "an address in a part": ({"prompt": user({"type": "image", "image": "http://x.org/a.png"})}, "not fetched"),
    "an address as url": ({"prompt": user({"type": "image", "url": "http://x.org/a.png"})}, "content.0.url"),
    "an address beside": ({"image": "https://x.org/a.png"}, "field 'image': .*not fetched"),
    "a data address": ({"images": ["data:image/png;base64,AAAA"]}, "field 'images.0': .*not fetched"),
    "a vision token": ({"prompt": user({"type": "text", "text": "<|image_pad|>"})}, "prompt.0.content.0.text"),
    "a vision token in a plain text": ({"prompt": "<|vision_start|> what?"}, "field 'prompt': .*promises an image"),
    "a part of another kind": ({"prompt": user({"type": "video"})}, "text or image, found 'video'"),
    "a part of OpenAI's kind": ({"prompt": user({"type": "image_url", "image_url": {"url": "x"}})}, "'image_url'"),
    "a part without a kind": ({"prompt": user({"text": "what?"})}, "prompt.0.content.0.type"),
    "a text part of a number": ({"prompt": user({"type": "text", "text": 5})}, "content.0.text': expected a text"),
    "a text part without a text": ({"prompt": user({"type": "text", "text": None})}, "content.0.text"),
    "a part that is a text": ({"prompt": user("what?")}, "prompt.0.content.0': expected a part"),
    "a role that nobody has": ({"prompt": [{"role": "human", "content": "x"}]}, "prompt.0.role': expected system"),
    "a turn without content": ({"prompt": [{"role": "user", "content": None}]}, "prompt.0.content"),
    "a turn of the assistant at the end": ({"prompt": [{"role": "assistant", "content": "x"}]}, "end with a turn of"),
    "an image that is missing": ({"prompt": user({"type": "image", "image": "no.png"})}, "no such image file"),
    "a completion that is a number": ({"completion": 5}, "field 'completion'"),
    "a gold answer that is a list": ({"gold": ["red"]}, "field 'gold'"),
    **{f"the column {name}": ({name: ["x"]}, f"field '{name}': expected another name") for name in RESERVED},
}  # fmt: skip


@pytest.mark.parametrize("read", ROWS_WITH_PROMPTS)
@pytest.mark.parametrize("case", REFUSED)
def test_f22_a_prompt_that_cannot_be_used_is_named(folder, case, read):
    fields, problem = REFUSED[case]
    with pytest.raises(RecordError, match=rf"a\.jsonl:1: .*{problem}"):
        read(folder, **fields)


def test_f22_groups_without_a_prompt_keep_their_columns(folder):
    """Their prompts come from the task's data; pointers need none, whatever a column is called."""
    row = {name: value for name, value in GROUP.items() if name != "prompt"}
    pointers = {**row, "prompt": 5, "candidates": [{"pointer": [1]}], "image": "img/0.png"}
    [found] = load_groups(write(folder / "a.jsonl", row))
    assert found.model_extra == {"answers": TEN}
    [found] = load_groups(write(folder / "a.jsonl", pointers))
    assert found.model_extra == {"answers": TEN, "prompt": 5, "images": [str(folder / "img" / "0.png")]}
    [found] = load_groups(write(folder / "a.jsonl", {**pointers, "image": None, "images": None}))
    assert found.images == []
    problem = problem_of(write(folder / "a.jsonl", {**pointers, "completions": ["x"]}), load_groups)
    assert "a.jsonl:1: field 'completions': expected another name" in problem
    taken = {**row, "candidates": [{"completion": "x"}, {"completion": "x", "trainer_state": 5}]}
    problem = problem_of(write(folder / "a.jsonl", taken), load_groups)
    assert "a.jsonl:1: field 'candidates.1.trainer_state': expected another name" in problem


@pytest.mark.parametrize("images", [["img/1.png"], []])
def test_f22_images_of_groups_are_those_of_the_tasks_prompt(folder, images):
    row = {**{name: value for name, value in GROUP.items() if name != "prompt"}, "images": images}
    write(folder / "train.jsonl", row)
    write(folder / "tasks.jsonl", {**VQA, "image": "img/0.png"})
    source = str(folder / "tasks.jsonl")
    arguments = GroupArguments(dataset_name=str(folder), policy="vlm", task_data=source)
    if not images:
        [found] = load_stored_groups(arguments, "train")
        assert found.columns["images"] == [str(folder / "img" / "0.png")]
        return
    with pytest.raises(RecordError, match="group 'a': field 'images': expected none, or those of the prompt of"):
        load_stored_groups(arguments, "train")


def test_f22_rows_of_two_tasks_in_one_file(folder):
    path = write(folder / "a.jsonl", {**VQA, "image": "img/0.png"}, {**CHAT, **VQA, "image": "img/0.png"})
    with pytest.raises(RecordError, match="a.jsonl:2: field 'prompt': a row of another task"):
        load_rows(path, "train")


@pytest.mark.parametrize("kind", ["vqa", "chat", "report"])
def test_f22_duplicate_ids_are_refused(folder, kind):
    row = {**LOADERS[kind][0], "image": "img/0.png"}
    with pytest.raises(RecordError, match="row 2: field 'id': duplicate id 'a', of row 1"):
        load_rows(write(folder / "a.jsonl", row, row), "train")


# -- <image> in a text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["preferences", "score", "chat", "groups"])
def test_t27_a_mark_in_a_prompt_is_the_place_of_an_image(folder, kind):
    row, load = LOADERS[kind]
    name = "prompt" if kind in ("chat", "groups") else "query"
    for prompt in ("before <image>\nafter", [{"role": "user", "content": "before <image>\nafter"}]):
        [record] = load(write(folder / "a.jsonl", {**row, name: prompt, "image": "img/0.png"}))
        asked = (
            record["prompt"] if isinstance(record, dict) else record.query if kind == "preferences" else record.prompt
        )
        assert asked == user({"type": "text", "text": "before "}, PLACE, {"type": "text", "text": "after"})


SPELLINGS = ("<image>", "<Image>", "<IMAGE>", "<image/>", "<image />", "<img>", "<|image|>", "<image 1>", "<image1>",
             "<image_1>", "<|image_1|>", "<image 0>", "<ImageHere>", "<image_placeholder>")  # fmt: skip


@pytest.mark.parametrize("mark", SPELLINGS)
def test_t27_every_spelling_of_a_mark_is_the_place_of_an_image(folder, mark):
    row = chat(folder, prompt=f"before {mark}\nafter", image="img/0.png")
    assert row["prompt"] == user({"type": "text", "text": "before "}, PLACE, {"type": "text", "text": "after"})
    [record] = load_records(write(folder / "a.jsonl", {**VQA, "question": f"{mark}\nwhat?", "image": "img/0.png"}))
    assert record.question == "what?"
    problem = problem_of(
        write(folder / "a.jsonl", {**CHAT, "prompt": f"{mark}{mark}", "image": "img/0.png"}), LOADERS["chat"][1]
    )
    assert f"a.jsonl:1: field 'prompt': {mark} in a text marks the place of an image: expected 1 in texts" in problem
    assert f"(found '{mark}{mark}')" in problem


def test_t27_marks_with_numbers_say_which_image(folder):
    both = ["img/0.png", "img/1.png"]
    row = chat(folder, prompt="<image 2> or <image 1>?", images=both)
    assert row["images"] == [str(folder / path) for path in reversed(both)]
    for prompt in ("<image 1> or <image 1>?", "<image 1> or <image>?", "<image 2> or <image 3>?"):
        with pytest.raises(RecordError, match="a.jsonl:1: field 'prompt': <image [12]>.* each once"):
            chat(folder, prompt=prompt, images=both)
    with pytest.raises(RecordError, match="a.jsonl:1: field 'prompt': <image 1> in a text .* expected 0"):
        chat(folder, prompt="what is on <image 1>?")
    question = {**VQA, "question": "<image 2><image 1> same?", "images": both}
    assert "in their order" in problem_of(write(folder / "a.jsonl", question), load_records)


def test_t27_tags_of_html_may_be_words(folder):
    """Where nothing could be lost: the images have their places, or there are none."""
    text = {"type": "text", "text": "what do <img> and <video> do?"}
    assert chat(folder, prompt=text["text"])["prompt"] == [{"role": "user", "content": text["text"]}]
    assert chat(folder, prompt=user(PLACE, text), image="img/0.png")["prompt"] == user(PLACE, text)
    with pytest.raises(RecordError, match="a.jsonl:1: field 'prompt': a mark of a video in a text"):
        chat(folder, prompt="<video>\nwhat?", image="img/0.png")


@pytest.mark.parametrize("rows", [[{"messages": user(TEXT)}], [{"messages": user(TEXT)}, {"id": 5, "text": "x"}]])
def test_f22_rows_of_no_task_say_what_is_expected(folder, rows):
    with pytest.raises(RecordError) as caught:
        load_rows(write(folder / "a.jsonl", *rows), "train")
    assert len(caught.value.problems) == len(rows)
    assert caught.value.problems[0] == (
        f"{folder / 'a.jsonl'}:1: expected 'prompt' (a text or chat messages), 'question' with 'answers', or 'report' "
        "with 'ground_truth_agents'; found the fields messages; of 'messages', the turns before the answer are "
        "'prompt', and the answer is 'completion'"
    )


@pytest.mark.parametrize(("kind", "name"), [("vqa", "question"), ("report", "report")])
def test_t27_a_mark_before_a_question_is_where_the_image_stands_anyway(folder, kind, name):
    row, load = LOADERS[kind]
    [record] = load(write(folder / "a.jsonl", {**row, name: "<image>\nwhat?", "image": "img/0.png"}))
    assert getattr(record, name) == "what?"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("preferences", {"query": "<image> <image>", "image": "img/0.png"}),
        ("preferences", {"query": "<image> what?"}),
        ("score", {"query": "what <image>?", "images": ["img/0.png", "img/1.png"]}),
        ("chat", {"prompt": user(PLACE, {"type": "text", "text": "<image>"}), "image": "img/0.png"}),
        ("chat", {"prompt": [{"role": "system", "content": "<image>"}, *user(TEXT)], "image": "img/0.png"}),
        ("vqa", {"question": "what is <image>?", "image": "img/0.png"}),
        ("vqa", {"question": "<image><image>what?", "image": "img/0.png"}),
        ("report", {"report": "dark <image>", "image": "img/0.png"}),
    ],
)
def test_t27_other_marks_are_refused(folder, kind, fields):
    row, load = LOADERS[kind]
    problem = problem_of(write(folder / "a.jsonl", {**row, **fields}), load)
    assert "a.jsonl:1: field '" in problem
    assert "<image>" in problem
