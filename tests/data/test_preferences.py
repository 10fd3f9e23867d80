"""Preferences: every form of record, what is dropped and counted, and broken rows of every kind."""

import io
import json
from collections import Counter, defaultdict

import pytest
from PIL import Image

from data.io.records import RecordError, write_jsonl
from data.preferences import PreferenceRecord, as_pairs, load_preferences, main, pairs, tied_pairs
from data.rows.messages import MAX_CHARACTERS


def encoded(kind: str = "PNG", size: tuple[int, int] = (32, 24), colour: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, kind)
    return content.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded())
    (tmp_path / "truncated.jpg").write_bytes(encoded("JPEG", (200, 200))[:-300])
    (tmp_path / "not_an_image.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "small.png").write_bytes(encoded(size=(4, 40)))
    (tmp_path / "strip.png").write_bytes(encoded(size=(4000, 10)))
    (tmp_path / "a_folder.png").mkdir()
    return tmp_path


GOOD = {"id": 1, "query": "what?", "image": "good.png", "response": ["a", "b"], "human_ranking": [0, 1]}


def load(folder, *rows, **options):
    write_jsonl(folder / "rows.jsonl", rows)
    return load_preferences(folder / "rows.jsonl", **options)


# -- forms ------------------------------------------------------------------------------------------------------------


def test_the_plain_form(folder):
    records, counts = load(folder, GOOD, {**GOOD, "id": "x-2", "human_ranking": [1, 0]})
    assert [record.id for record in records] == [1, "x-2"]
    assert records[0].images == [str(folder / "good.png")]
    assert [pairs(record) for record in records] == [[(0, 1)], [(1, 0)]]
    assert (counts.rows, counts.records, counts.pairs, counts.skipped) == (2, 2, 2, 0)


@pytest.mark.parametrize(
    "images",
    [
        {"image": "good.png"},
        {"images": ["good.png"]},
        {"image": ["good.png"]},
        {"image": None, "images": ["good.png"]},
    ],
)
def test_images_have_two_names(folder, images):
    row = {key: value for key, value in GOOD.items() if key != "image"}
    assert load(folder, row | images)[0][0].images == [str(folder / "good.png")]


def test_a_prompt_may_have_no_image_or_several(folder):
    plain = {key: value for key, value in GOOD.items() if key != "image"}
    records, _ = load(folder, plain, plain | {"images": ["good.png"] * 3})
    assert [len(record.images) for record in records] == [0, 3]


def test_ids_are_optional_and_may_repeat(folder):
    nameless = {key: value for key, value in GOOD.items() if key != "id"}
    records, _ = load(folder, nameless, GOOD, GOOD, nameless)
    assert [record.id for record in records] == [0, 1, 1, 3]


def test_further_fields_are_ignored(folder):
    assert load(folder, GOOD | {"judge": "someone", "models": ["x", "y"]})[1].records == 1


@pytest.mark.parametrize("prompt", ["what?", [{"role": "user", "content": "what?"}]])
@pytest.mark.parametrize("answers", ["texts", "messages", "parts"])
def test_trls_form_with_a_prompt(folder, prompt, answers):
    if answers == "texts":
        sides = {"chosen": "good", "rejected": "bad"}
    else:
        content = {"messages": lambda text: text, "parts": lambda text: [{"type": "text", "text": text}]}[answers]
        sides = {
            name: [{"role": "assistant", "content": content(text)}]
            for name, text in (("chosen", "good"), ("rejected", "bad"))
        }
    record = load(folder, {"prompt": prompt, "images": ["good.png"], **sides})[0][0]
    assert record.prompt() == prompt
    assert (record.response, record.human_ranking) == (["good", "bad"], [0, 1])


def test_trls_form_whose_prompt_is_in_the_messages(folder):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    ]
    row = {
        "images": ["good.png"],
        "chosen": [*turns, {"role": "assistant", "content": "good"}],
        "rejected": [*turns, {"role": "assistant", "content": "bad"}],
    }
    record = load(folder, row)[0][0]
    assert [turn["role"] for turn in record.prompt()] == ["system", "user"]
    assert record.response == ["good", "bad"]


@pytest.mark.parametrize("form", ["json", "parquet", "folder", "saved"])
def test_files_of_every_kind_with_images_as_bytes(tmp_path, form):
    from datasets import Dataset, DatasetDict, Features, List, Value
    from datasets import Image as ImageFeature

    (tmp_path / "good.png").write_bytes(encoded())
    if form == "json":
        (tmp_path / "rows.json").write_text(json.dumps([GOOD, GOOD]))
        source = tmp_path / "rows.json"
    elif form == "folder":
        write_jsonl(tmp_path / "train.jsonl", [GOOD, GOOD])
        source = tmp_path
    else:
        features = {"id": Value("string"), "query": Value("string"), "image": ImageFeature()}
        features |= {"response": List(Value("string")), "human_ranking": List(Value("int64"))}
        columns = {"id": ["a", "b"], "query": ["x", "y"], "response": [["p", "q"]] * 2, "human_ranking": [[1, 0]] * 2}
        columns["image"] = [{"bytes": encoded(), "path": None}] * 2
        dataset = Dataset.from_dict(columns, features=Features(features))
        source = tmp_path / ("rows.parquet" if form == "parquet" else "saved")
        if form == "parquet":
            dataset.to_parquet(str(source))
        else:
            DatasetDict(train=dataset).save_to_disk(str(source))
    records, counts = load_preferences(source)
    assert counts.records == 2
    assert len(records[0].images) == 1


def test_images_as_pil(tmp_path):
    record = PreferenceRecord(query="?", image=Image.new("RGB", (9, 9)), response=["a", "b"], human_ranking=[0, 1])
    assert record.images[0].size == (9, 9)


# -- rankings ---------------------------------------------------------------------------------------------------------


def test_all_ordered_pairs_of_unequal_rank(folder):
    row = GOOD | {"response": ["a", "b", "c", "d"], "human_ranking": [2, 0, 1, 1]}
    record = load(folder, row)[0][0]
    assert pairs(record) == [(1, 2), (1, 3), (1, 0), (2, 0), (3, 0)]
    assert tied_pairs(record) == 1
    assert [pair.response for pair in as_pairs(record)] == [["b", "c"], ["b", "d"], ["b", "a"], ["c", "a"], ["d", "a"]]
    assert all(pair.human_ranking == [0, 1] for pair in as_pairs(record))


def test_ties_are_dropped_and_counted(folder):
    tied = GOOD | {"human_ranking": [1, 1]}
    partly = GOOD | {"response": ["a", "b", "c"], "human_ranking": [0, 1, 1]}
    records, counts = load(folder, tied, GOOD, partly, tied)
    assert [len(record.response) for record in records] == [2, 3]
    assert (counts.pairs, counts.tied_pairs, counts.tied_records, counts.skipped) == (3, 3, 2, 0)
    assert str(counts) == "2 of 4 records used, 3 pairs; ties left out: 3 pairs, 2 whole records"


def test_ranks_need_not_be_consecutive_or_whole(folder):
    record = load(folder, GOOD | {"response": ["a", "b", "c"], "human_ranking": [7.5, -2, 100]})[0][0]
    assert pairs(record) == [(1, 0), (1, 2), (0, 2)]


def test_only_ties_are_no_preferences(folder):
    with pytest.raises(RecordError, match=r"no preferences: 0 of 1 records used.*ties left out: 1 pairs"):
        load(folder, GOOD | {"human_ranking": [0, 0]})


# -- broken rows ------------------------------------------------------------------------------------------------------

LONG = "x" * (10 * 1024 * 1024)
TURN = {"role": "assistant", "content": "x"}
BROKEN = {
    "missing image": ({"image": "nowhere.png"}, "field 'images': .*nowhere.png: no such image file"),
    "truncated JPEG": ({"image": "truncated.jpg"}, "field 'images': .*truncated.jpg: cannot be decoded"),
    "text for an image": ({"image": "not_an_image.png"}, "field 'images': .*not an image"),
    "empty image file": ({"image": "empty.png"}, "field 'images': .*empty.png: empty, 0 bytes"),
    "image too small": ({"image": "small.png"}, "field 'images': .*4x40 pixels: expected at least 8"),
    "image too long a strip": ({"image": "strip.png"}, "field 'images': .*more than 200 times"),
    "folder for an image": ({"image": "a_folder.png"}, "field 'images': .*found a folder"),
    "one of several images missing": (
        {"image": None, "images": ["good.png", "gone.png"]},
        "field 'images': .*gone.png: no such",
    ),
    "image address": ({"image": "https://example.com/a.png"}, "field 'image': .*addresses are not fetched"),
    "empty image path": ({"image": ""}, "field 'image': .*path, and this one is empty"),
    "number for an image": ({"image": 7}, "field 'image': .*expected a path"),
    "image dict without bytes": ({"image": {"bytes": None, "path": None}}, "field 'image': .*'bytes' or 'path'"),
    "other images under another name": ({"images": ["small.png"]}, "field 'images': expected the images of 'image'"),
    "no query": ({"query": None}, "field 'query': expected a text, or a list of chat messages"),
    "query left out": ({"query": ...}, "field 'query': Field required"),
    "empty query": ({"query": ""}, "field 'query.*': expected a text, and this one is empty"),
    "blank query": ({"query": " \n "}, "field 'query.*': expected a text, and this one is empty"),
    "number for a query": ({"query": 12}, "field 'query': expected a text, or a list of chat messages"),
    "10 MB query": ({"query": LONG}, f"field 'query.*': expected at most {MAX_CHARACTERS} characters"),
    "image token in the query": ({"query": "<|image_pad|> what?"}, "field 'query.*': .*promises an image"),
    "no messages": ({"query": []}, "field 'query': expected a text, or a list of chat messages"),
    "messages end with the assistant": ({"query": [TURN]}, "query: expected chat messages that end with the user's"),
    "message without a role": ({"query": [{"content": "x"}]}, "field 'query.*role': Field required"),
    "message part of another kind": (
        {"query": [{"role": "user", "content": [{"type": "video"}]}]},
        "expected parts of type text or image, found 'video'",
    ),
    "more places than images": (
        {"query": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]},
        r"field 'images': expected as many as the messages have places \(2\), found 1",
    ),
    "response left out": ({"response": ...}, "field 'response': Field required"),
    "one response": ({"response": ["a"], "human_ranking": [0]}, "field 'response': List should have at least 2"),
    "no response": ({"response": [], "human_ranking": []}, "field 'response': List should have at least 2"),
    "text for responses": ({"response": "ab"}, "field 'response': Input should be a valid list"),
    "empty response": ({"response": ["a", ""]}, "field 'response.1': expected a text, and this one is empty"),
    "null response": ({"response": ["a", None]}, "field 'response.1': expected a text, parts of texts and"),
    "10 MB response": (
        {"response": [LONG, "b"]},
        "field 'response.0': expected at most 200000 characters, .*10485760",
    ),
    "image token in a response": ({"response": ["a", "<|vision_start|>"]}, "field 'response.1': .*promises an image"),
    "ranking left out": ({"human_ranking": ...}, "field 'human_ranking': Field required"),
    "shorter ranking": ({"human_ranking": [0]}, "human_ranking: expected a rank for each of 2 responses, found 1"),
    "longer ranking": (
        {"human_ranking": [0, 1, 2]},
        "human_ranking: expected a rank for each of 2 responses, found 3",
    ),
    "NaN ranking": ({"human_ranking": [0, float("nan")]}, "field 'human_ranking.1': expected a finite number"),
    "infinite ranking": ({"human_ranking": [0, float("inf")]}, "field 'human_ranking.1': .*finite number"),
    "text ranking": ({"human_ranking": ["0", "1"]}, "field 'human_ranking.0': Input should be a valid number"),
    "null ranking": ({"human_ranking": [0, None]}, "field 'human_ranking.1': Input should be a valid number"),
    "nested ranking": ({"human_ranking": [[0], [1]]}, "field 'human_ranking.0': Input should be a valid number"),
    "negative margin": ({"margin": -1}, "margin: expected at least 0, found -1"),
    "NaN margin": ({"margin": float("nan")}, "field 'margin': expected a finite number"),
    "list for an id": ({"id": [1]}, "field 'id': expected an integer or a text"),
    "TRL: no rejected": (
        {"response": ..., "human_ranking": ..., "chosen": "a"},
        "expected 'chosen' and 'rejected', or 'response' and 'human_ranking'",
    ),
    "TRL: chosen misspelt": (
        {"query": ..., "response": ..., "human_ranking": ..., "prompt": "?", "chosn": "a", "rejected": "b"},
        "expected 'chosen' and 'rejected', or 'response' and 'human_ranking'",
    ),
    "TRL: rejected of another kind": (
        {"response": ..., "human_ranking": ..., "chosen": "a", "rejected": [TURN, TURN]},
        "field 'response.1.0.type': expected parts of type text or image, found None",
    ),
    "TRL: two turns of the assistant": (
        {"response": ..., "human_ranking": ..., "chosen": [TURN, TURN], "rejected": [TURN]},
        "chosen: expected the prompt and one turn of the assistant after it, found 2 turns",
    ),
    "a list for a row": ([1, 2], "field 'the row': Input should be a valid dictionary"),
}


def broken_row(change) -> object:
    if not isinstance(change, dict):
        return change
    row = {**GOOD, **change}
    return {key: value for key, value in row.items() if value is not ...}


def test_there_are_40_kinds():
    assert len(BROKEN) >= 40


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_is_a_clear_error_or_skipped_and_counted(folder, kind):
    change, message = BROKEN[kind]
    rows = [GOOD, broken_row(change), GOOD]
    with pytest.raises(RecordError, match=message) as error:
        load(folder, *rows)
    assert all("rows.jsonl:2: " in problem for problem in error.value.problems)
    assert len(str(error.value)) < 2000
    records, counts = load(folder, *rows, skip_bad_rows=True)
    assert (len(records), counts.skipped, counts.rows) == (2, 1, 3)
    assert "bad rows skipped: 1" in str(counts)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"query": "what?", ', "column 19: not valid JSON"),
        (b'{"query": "\xff"}', "not UTF-8"),
        (b"null", "field 'the row'"),
    ],
)
def test_a_line_that_is_no_row(folder, line, message):
    good = json.dumps(GOOD).encode()
    (folder / "rows.jsonl").write_bytes(b"\n".join([good, line, good]))
    with pytest.raises(RecordError, match=f"rows.jsonl:2: .*{message}"):
        load_preferences(folder / "rows.jsonl")
    assert load_preferences(folder / "rows.jsonl", skip_bad_rows=True)[1].skipped == 1


def test_every_problem_of_every_row_is_listed(folder):
    rows = [broken_row(BROKEN[kind][0]) for kind in ("NaN ranking", "truncated JPEG", "one response", "empty query")]
    with pytest.raises(RecordError) as error:
        load(folder, *rows)
    lines = {problem.split(": ")[0].rsplit(":", 1)[1] for problem in error.value.problems}
    assert lines == {"1", "2", "3", "4"}


def test_nothing_left_is_an_error_that_says_why(folder):
    with pytest.raises(RecordError, match="no preferences: 0 of 1 records used.*skipped: 1\n.*truncated.jpg"):
        load(folder, GOOD | {"image": "truncated.jpg"}, skip_bad_rows=True)


def test_a_broken_image_in_parquet_names_its_row(tmp_path):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = {"query": Value("string"), "images": List(ImageFeature())}
    features |= {"response": List(Value("string")), "human_ranking": List(Value("int64"))}
    whole = {"bytes": encoded("JPEG", (200, 200)), "path": None}
    cut = {"bytes": whole["bytes"][:-300], "path": None}
    columns = {"query": ["x", "y"], "images": [[whole], [whole, cut]], "response": [["p", "q"]] * 2}
    columns["human_ranking"] = [[1, 0]] * 2
    Dataset.from_dict(columns, features=Features(features)).to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(RecordError, match=r"rows.parquet, row 2: field 'images': .*cannot be decoded"):
        load_preferences(tmp_path / "rows.parquet")
    assert load_preferences(tmp_path / "rows.parquet", skip_bad_rows=True)[1].skipped == 1


# -- easy-VQA ---------------------------------------------------------------------------------------------------------


SIZES = ["--pairs", "3000", "--held_out_pairs", "400", "--answers", "800", "--shapes_first", "50"]
SIZES += ["--attributes_first", "201", "--hasty", "400"]


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("easy")
    main(["--source", "easy_vqa", "--output_dir", str(folder), *SIZES])
    return folder


WORDS = {"red", "green", "blue", "black", "gray", "teal", "brown", "yellow", "circle", "rectangle", "triangle"}


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_no_image_stands_in_two_splits(easy):
    images = [{row["image"] for row in read(easy, f"{split}.jsonl")} for split in ("train", "validation", "test")]
    assert all(not first & second for first in images for second in images if first is not second)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_neither_question_nor_answer_gives_the_right_one_away(easy, split):
    """As often as one sentence is right and another wrong for a question of a kind, it is the other way round."""
    rows = [row for row in read(easy, f"{split}.jsonl") if not row["id"].startswith("lesson")]
    kinds = Counter(row["kind"] for row in rows)
    assert kinds.pop("other_question", 0) == (3000 // 7 if split == "train" else 0)
    shares = {"colour": 1, "shape": 1, "presence": 2, "absence": 2} if split == "train" else dict.fromkeys(kinds, 1)
    total = 3000 - 3000 // 7 if split == "train" else 400
    assert kinds == {kind: total * share // sum(shares.values()) for kind, share in shares.items()}
    rows = [row for row in rows if row["kind"] != "other_question"]
    right: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        better, worse = (row["response"][row["human_ranking"].index(rank)] for rank in (0, 1))
        assert better != worse
        if row["kind"] in ("presence", "absence"):
            right[row["query"]][" no " in f" {better.lower()} "] += 1
        else:
            words = frozenset(better.split()) ^ frozenset(worse.split())
            right[f"{row['kind']} {sorted(words)}"][
                sorted(words).index(next(w for w in better.split() if w in words))
            ] += 1
    for case, counts in right.items():
        assert abs(counts[0] - counts[1]) <= 1, (case, counts)
    places = Counter(row["human_ranking"][0] for row in rows)
    assert abs(places[0] / len(rows) - 0.5) < 0.08


def test_training_begins_with_colours_and_shapes(easy):
    rows = read(easy, "train.jsonl")
    assert Counter(row["kind"] for row in rows[:200]) == {"colour": 100, "shape": 100}
    assert [row["id"].startswith("lesson") for row in rows] == [True] * 200 + [False] * (len(rows) - 200)
    assert len({row["id"] for row in rows}) == len(rows)
    assert not any(
        row["id"].startswith("lesson") for split in ("validation", "test") for row in read(easy, f"{split}.jsonl")
    )


def test_hasty_demonstrations_mostly_answer_another_question(easy):
    rows = read(easy, "hasty/train.jsonl")
    assert len(rows) == 400
    beside = [row for row in rows if row["completion"] != row["answers"][0]]
    assert 0.65 < len(beside) / len(rows) < 0.8
    for row in beside:
        kind = "colour" if row["completion"].startswith("The shape is ") else "shape"
        assert kind != row["kind"]
        assert row["completion"].startswith(("The shape is ", "It is a "))


def test_answers_are_right(easy):
    """By easy-VQA's own answers."""
    import easy_vqa

    paths = easy_vqa.get_test_image_paths()
    truth = {(paths[number], question): answer for question, answer, number in zip(*easy_vqa.get_test_questions(), strict=True)}  # fmt: skip  # noqa: E501
    for row in read(easy, "test.jsonl"):
        better, worse = (row["response"][row["human_ranking"].index(rank)].lower() for rank in (0, 1))
        answer = truth[row["image"], row["query"]]
        if answer in ("yes", "no"):
            said_no = " no " in f" {better} "
            negated = any(word in row["query"].split() for word in ("no", "not"))
            assert said_no == ((answer == "no") != negated), row
        else:
            assert answer in better
            assert answer not in worse


@pytest.mark.parametrize("name", ["train.jsonl", "test_other_question.jsonl"])
def test_answers_to_another_question_are_true_and_beside_it(easy, name):
    """By easy-VQA's own answers: what is preferred answers the question, the other one is right for another one."""
    import easy_vqa

    rows = [row for row in read(easy, name) if row["kind"] == "other_question"]
    assert rows
    for part in ("train", "test"):
        paths = getattr(easy_vqa, f"get_{part}_image_paths")()
        told: dict[str, set] = defaultdict(set)
        for question, answer, number in zip(*getattr(easy_vqa, f"get_{part}_questions")(), strict=True):
            words = [word for word in question.removesuffix("?").split() if word in WORDS]
            negated = any(word in question.split() for word in ("no", "not"))
            said = (answer, True) if answer in WORDS else ((words or [""])[0], (answer == "yes") != negated)
            told[paths[number]].add(said)
        for row in rows:
            if row["image"] not in paths.values():
                continue
            said = []
            for text in sorted(row["response"], key=lambda text: row["human_ranking"][row["response"].index(text)]):
                word = next(word for word in text.lower().rstrip(".").split() if word in WORDS)
                said.append((word, " no " not in f" {text.lower()} "))
            assert set(said) <= told[row["image"]], row
            assert said[0] != said[1]


def test_controls_change_one_thing(easy):
    rows = read(easy, "test.jsonl")
    for name, changed in (("blank_image", "image"), ("other_image", "image"), ("blank_question", "query")):
        control = read(easy, f"test_{name}.jsonl")
        assert len(control) == len(rows)
        for row, other in zip(rows, control, strict=True):
            assert {key for key in row if row[key] != other[key]} == {changed}
    records, counts = load_preferences(easy / "test_blank_image.jsonl")
    assert counts.records == len(rows)
    assert Image.open(records[0].images[0]).getcolors() == [(4096, (128, 128, 128))]


def test_the_answers_are_chat_rows_with_shapes_first(easy):
    from data.tasks import load_rows

    rows = load_rows(easy / "answers", "train")
    assert all([turn["role"] for turn in row["prompt"]] == ["system", "user"] for row in rows)
    assert all(set(row["answers"]) == {row["completion"]} for row in rows)
    kinds = [row["kind"] for row in rows]
    assert kinds[:50] == ["shape"] * 50
    assert Counter(kinds[50:]) == dict.fromkeys(("colour", "shape", "presence", "absence"), 200)


def test_the_same_seed_gives_the_same_files(easy, tmp_path):
    main(["--source", "easy_vqa", "--output_dir", str(tmp_path), *SIZES])
    for name in ("train.jsonl", "test.jsonl", "test_other_image.jsonl", "answers/validation.jsonl"):
        assert (tmp_path / name).read_bytes() == (easy / name).read_bytes()


def test_kinds_can_be_chosen(tmp_path):
    main(["--source", "easy_vqa", "--output_dir", str(tmp_path), "--pairs", "60", "--kinds", "shape"])
    assert {row["kind"] for row in read(tmp_path, "train.jsonl")} == {"shape"}
