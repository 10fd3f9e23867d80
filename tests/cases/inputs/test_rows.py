"""Rows of every kind: null is missing, images under any usual name, places of images, and what is refused by name."""

import json
from collections import Counter

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from data import agent_selection
from data.agent_selection import AgentSelectionRecord
from data.candidate_groups import load_groups
from data.factor_labels.clusters import FactorSet
from data.factors import Labelled, LabelledImage, load_labelled, parse_annotations, write_labelled
from data.io import image_sources
from data.io.images import open_image
from data.io.json_text import NotJson, parse_json
from data.io.records import Location, Record, RecordError, parse_row, parse_rows, read_rows
from data.io.unreadable import Skipping
from data.preferences import PreferenceRecord, load_preferences
from data.rows.chat import RESERVED, ChatRecord
from data.tasks import load_rows
from data.vqa import VqaRecord, load_records
from rewards import eval as rewards_eval
from rewards.preferences.scored import ScoredPreference, load_scored_preferences
from rewards.score import ResponseRow, load_responses, scored_rows
from rewards.scoring.inputs import read_completions
from rollouts.filter_dataset import Report, load_reports
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import load_stored_groups

TEN = ["red"] * 10
HALF = "what \ud83d?"
PREFERENCE = {"id": "a", "query": "what?", "response": ["x", "y"], "human_ranking": [0, 1]}
VQA = {"id": "a", "question": "what?", "answers": TEN}
CHAT = {"id": "a", "prompt": [{"role": "user", "content": "what?"}], "answers": TEN}
SCORE = {"id": "a", "query": "what?", "response": ["x", "y"]}
REPORT = {"id": "a", "report": "dark", "ground_truth_agents": ["blur_filter"], "ground_truth_filtered_data": [1]}
SCORED = {**PREFERENCE, "scores": [0.5, 1.5]}
EVAL = {"id": "a", "completion": "red", "answers": TEN}
GROUP = {**CHAT, "candidates": [{"completion": "red", "reward": 1.0}, {"completion": "blue", "reward": 0.0}]}


@pytest.fixture
def folder(tmp_path):
    """With two pictures, 0.png and 1.png, in img/."""
    (tmp_path / "img").mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16), (200 * number, 9, 9)).save(tmp_path / "img" / f"{number}.png")
    return tmp_path


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LOADERS = {
    "preferences": (PREFERENCE, lambda path: load_preferences(path)[0]),
    "vqa": (VQA, load_records),
    "chat": (CHAT, lambda path: load_rows(path, "train")),
    "score": (SCORE, lambda path: load_responses(path, "test")[1]),
    "report": (REPORT, agent_selection.load_records),
    "eval": (EVAL, lambda path: read_completions(str(path), "test", with_images=True)),
    "groups": (GROUP, load_groups),
}
"""Kinds of rows with images: a row without them, and how a file is read."""


def images_of(record) -> list:
    return list(record["images"] if isinstance(record, dict) else record.images)


def problem_of(path, load) -> str:
    with pytest.raises(RecordError) as caught:
        load(path)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


# -- null is missing --------------------------------------------------------------------------------------------------


def test_f01_trl_vision_preferences_with_null_texts_are_read(folder):
    turn = List({"content": List({"text": Value("string"), "type": Value("string")}), "role": Value("string")})
    features = Features({"prompt": turn, "images": List(ImageFeature()), "chosen": turn, "rejected": turn})
    picture = (folder / "img" / "0.png").read_bytes()
    ask = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]}]
    say = {
        side: [{"role": "assistant", "content": [{"type": "text", "text": side}]}] for side in ("chosen", "rejected")
    }
    rows = [{"prompt": ask, "images": [{"bytes": picture, "path": None}], **say}] * 2
    Dataset.from_list(rows, features=features).to_parquet(folder / "p.parquet")
    records, counts = load_preferences(folder / "p.parquet")
    assert (len(records), counts.skipped) == (2, 0)
    assert records[0].prompt() == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert records[0].response == ["chosen", "rejected"]
    assert len(records[0].images) == 1


OPTIONAL = {
    PreferenceRecord: (PREFERENCE, ("id", "images", "image", "margin", "chosen")),
    VqaRecord: ({**VQA, "image": "0.png"}, ("id", "images", "question_type", "answer_type")),
    ChatRecord: (CHAT, ("id", "images", "image_path", "completion", "gold", *RESERVED)),
    ResponseRow: (SCORE, ("prompt", "images")),
    AgentSelectionRecord: (REPORT, ("id", "images", "pool", "metadata", "ground_truth_prompts", "unknown")),
    ScoredPreference: (SCORED, ("margin",)),
    Report: ({"report": "dark", "pool": "p"}, ("id", "images")),
}


@pytest.mark.parametrize(
    ("record_type", "name"), [(kind, name) for kind, (_, names) in OPTIONAL.items() for name in names]
)
def test_f01_null_is_as_good_as_missing(record_type, name):
    row = {key: value for key, value in OPTIONAL[record_type][0].items() if key != name}
    place = Location("a.jsonl", 1)
    without, with_null = parse_row(place, row, record_type), parse_row(place, {**row, name: None}, record_type)
    assert without.model_dump() == with_null.model_dump()


def test_f01_null_in_nested_records_and_required_fields():
    class Inner(Record):
        size: int = 5

    class Outer(Record):
        name: str
        inner: Inner = Inner()
        inners: list[Inner] = []

    place = Location("a.jsonl", 3)
    read = parse_row(place, {"name": "a", "inner": {"size": None}, "inners": [{"size": None}]}, Outer)
    assert (read.inner.size, read.inners[0].size) == (5, 5)
    with pytest.raises(RecordError, match=r"a\.jsonl:3: field 'name': .*\(found None\)"):
        parse_row(place, {"name": None}, Outer)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "what?", "image": None},
        {"type": "text", "text": "what?", "image": None, "index": None},
        {"type": "text", "text": "what?", "video": None},
    ],
)
def test_f01_null_in_parts_and_turns(folder, part):
    turn = {"role": "user", "content": [part], "tool_calls": None, "name": None}
    [row] = load_rows(write(folder / "a.jsonl", {**CHAT, "prompt": [turn]}), "train")
    assert row["prompt"] == [{"role": "user", "content": [{"type": "text", "text": "what?"}]}]


def test_f01_a_null_column_stays_a_column(folder):
    path = write(folder / "a.jsonl", {**CHAT, "answers": None}, {**CHAT, "id": "b"})
    assert [row["answers"] for row in load_rows(path, "train")] == [None, TEN]


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


# -- halves of characters, and JSON to the letter ---------------------------------------------------------------------

SURROGATES = [
    ("preferences", {"query": HALF}, "query"),
    ("preferences", {"id": HALF}, "id"),
    ("preferences", {"note": [{"deep": HALF}]}, "note.0.deep"),
    ("vqa", {"question": HALF, "image": "img/0.png"}, "question"),
    ("vqa", {"answers": ["red", HALF], "image": "img/0.png"}, "answers.1"),
    ("chat", {"prompt": [{"role": "user", "content": HALF}]}, "prompt.0.content"),
    ("chat", {"metadata": {"a": {"b": HALF}}}, "metadata.a.b"),
    ("score", {"response": HALF}, "response"),
    ("report", {"metadata": {"a": [HALF]}}, "metadata.a.0"),
    ("eval", {"id": HALF}, "id"),
    ("eval", {"completion": "\udc00"}, "completion"),
]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize(("kind", "change", "place"), SURROGATES)
def test_f12_half_a_character_is_refused_at_reading(folder, kind, change, place, ending):
    row, load = LOADERS[kind]
    path = folder / f"a.{ending}"
    rows = [{**row, "id": "first", **({"image": "img/0.png"} if kind == "vqa" else {})}, {**row, **change}]
    path.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    where = f"{path}, item 2" if ending == "json" else f"{path}:2"
    assert f"{where}: field '{place}': half of a surrogate pair at character" in problem_of(path, load)


def test_f12_half_a_character_in_a_key():
    with pytest.raises(NotJson, match="field 'a': the key .* holds half of a surrogate pair"):
        parse_json(b'{"a": {"x\\ud800": 1}}')
    assert parse_json(b'{"a\\ud83d\\ude00": "\\ud83d\\ude00"}') == {"a\U0001f600": "\U0001f600"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"id": 1, "id": 2}', "duplicate key 'id' in one object"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate key 'b'"),
        (b'{"a": NaN}', "field 'a': expected a finite number"),
        (b'{"a": [-Infinity]}', "field 'a.0': expected a finite number"),
        (b'{"a": 1e999}', "field 'a': expected a finite number"),
        ('{"a": "\udc80"}'.encode("utf-8", "surrogatepass"), "not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_f12_what_no_file_could_hold_again_is_not_read(content, problem):
    with pytest.raises(NotJson, match=problem):
        parse_json(content)


def test_f12_byte_order_marks_and_line_ends_of_windows_are_read(folder):
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(VQA).encode() + b"\r\n\r\n")
    assert [row for _, row in read_rows(folder / "a.jsonl")] == [VQA]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.txt"])
def test_f12_other_formats_are_named(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(RecordError, match="cannot tell the format"):
        read_rows(folder / name)


# -- sources of reports -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "what?", "answers": [{"confidence": "yes"}]}, "field 'answers': item 0: expected a text"),
        ({"question": 5}, "field 'question': Input should be a valid string"),
        ({"question": "what?", "answer": 7}, "field 'answer': expected a text"),
        ({"question": ["what?"]}, "field 'question': Input should be a valid string"),
        ({"multiple_choice_answer": {"label": 1}}, "field 'multiple_choice_answer': expected a text"),
    ],
)
def test_f18_texts_of_other_types_name_the_row(folder, row, problem):
    write(folder / "img" / "metadata.jsonl", {"file_name": "0.png", **row})
    with pytest.raises(RecordError) as caught:
        image_sources.load_all(str(folder / "img"))
    assert f"metadata.jsonl:1: {problem}" in str(caught.value)


def test_f18_answers_under_text_are_read(folder):
    write(folder / "img" / "metadata.jsonl", {"file_name": "0.png", "question": "what?", "answers": [{"text": "red"}]})
    first, second = image_sources.load_all(str(folder / "img"))
    assert (first.question, first.answers, second.answers) == ("what?", ("red",), ())


@pytest.mark.parametrize(
    ("column", "feature", "values", "problem"),
    [
        ("question", "string", ["a", "b", "c"], "row 2: field 'image': expected an image, found null"),
        ("question", "int64", [1, 2, 3], "row 1: field 'question': Input should be a valid string"),
        ("answer", "float64", [0.5, 0.5, 0.5], "row 1: field 'answer': expected a text"),
    ],
)
def test_f18_saved_data_sets_name_the_row(folder, column, feature, values, problem):
    content = {"bytes": (folder / "img" / "0.png").read_bytes(), "path": None}
    rows = [{"image": None if number == 1 else content, column: value} for number, value in enumerate(values)]
    features = Features({"image": ImageFeature(), column: Value(feature)})
    Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")
    with pytest.raises(RecordError) as caught:
        image_sources.load_all(str(folder / "saved"))
    assert problem in str(caught.value)


# -- rows with their own prompt ---------------------------------------------------------------------------------------


def user(*content):
    return [{"role": "user", "content": list(content)}]


PLACE, TEXT = {"type": "image"}, {"type": "text", "text": "what?"}
FIRST = {"type": "image", "image": "img/0.png"}


def chat(folder, **fields):
    return load_rows(write(folder / "a.jsonl", {**CHAT, **fields}), "train")[0]


def group(folder, **fields):
    return load_groups(write(folder / "a.jsonl", {**GROUP, **fields}))[0].model_extra


ROWS_WITH_PROMPTS = (chat, group)
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


# -- empty input ------------------------------------------------------------------------------------------------------

READERS = {
    "preferences": load_preferences,
    "score": lambda path: load_responses(path, "test"),
    "scored preferences": load_scored_preferences,
    "eval": lambda path: read_completions(str(path), "test"),
    "tasks": lambda path: load_rows(path, "train"),
    "reports": lambda path: load_reports(str(path), "test"),
}


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
@pytest.mark.parametrize("kind", READERS)
def test_n05_an_empty_file_is_an_error(folder, kind, content):
    path = folder / ("a.json" if content == "[]" else "a.jsonl")
    path.write_text(content)
    problem = problem_of(path, READERS[kind])
    assert str(path) in problem
    assert "no rows" in problem or "no preferences" in problem


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_n05_commands_end_with_an_error(folder, content):
    (folder / "a.jsonl").write_text(content)
    path, output = str(folder / "a.jsonl"), str(folder / "out")
    with pytest.raises(SystemExit, match="error: .*a.jsonl: has no rows"):
        rewards_eval.main(["--dataset_name", path, "--rewards", "xml_format", "--output_dir", output])
    with pytest.raises(SystemExit, match="error: "):
        agent_selection.main(["--dataset_name", path, "--output_dir", output])
    assert not (folder / "out").exists()


def test_all_problems_of_a_file_fit_on_a_screen(folder):
    rows = [{**VQA, "question": ["x" * 500], "answers": [1] * 50} for _ in range(100)]
    with pytest.raises(RecordError) as caught:
        parse_rows(read_rows(write(folder / ("a" * 200 + ".jsonl"), *rows)), VqaRecord)
    assert len(caught.value.problems) == 300
    assert len(str(caught.value)) < 2000
    assert "more problems" in str(caught.value)
