"""Preferences from easy-VQA: a right against a plausible wrong answer, both in the same natural sentence.

The question must not give the answer away. easy-VQA's question text alone predicts most of its yes/no answers, so
every split is drawn evenly over the kinds of questions, over yes and no within each yes/no question, and over all
(right, wrong) pairs of colours or shapes. A seventh of the training pairs teaches that an answer must be to the
question: the other one is true of the image, and answers something else. A reward model that has not learned this
gives full marks to whatever is true, which reinforcement learning finds out.

    train.jsonl, validation.jsonl, test.jsonl              preferences (data/preferences.py); no image in two of them
    test_blank_image.jsonl, test_other_image.jsonl,        the test with the image grey, with another record's image,
    test_blank_question.jsonl                              and without the question: what the images and questions do
    test_other_question.jsonl                              right answers against right answers to another question
    answers/train.jsonl, ...                               {"prompt", "completion", "answers", "image", ...} (chat
                                                           rows of data/tasks.py), maybe questions about shapes
                                                           first: for a warm start, and reinforcement learning
    hasty/train.jsonl                                      such rows of which most answer another question: a policy
                                                           that can see, and was taught not to listen
"""

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from data.io.image_sources import EASY_VQA, EASY_VQA_COLORS, EASY_VQA_SHAPES, SourceItem, load_splits
from data.io.output_folder import read_back, writing
from data.io.records import atomic_write, write_jsonl
from data.rows.answers import ANNOTATORS
from data.tasks import load_rows

SHARES = (0.9, 0.1, 0.1)
"""Of training and validation, of the images that are not easy-VQA's own test."""
KINDS = {"colour": 1, "shape": 1, "presence": 2, "absence": 2}
"""Kinds of questions and their shares of the training pairs, more of the harder ones; held-out pairs are even."""
ATTRIBUTES = ("colour", "shape")
OTHER_QUESTION = "other_question"
OTHER_SHARE = 7
"""One training pair in so many has an answer to another question."""
HASTY_SHARE = 0.75
"""Of hasty demonstrations, those that answer another question."""
SENTENCES = {
    "colour": ("The shape is {}.", "Its color is {}.", "The color is {}."),
    "shape": ("It is a {}.", "The shape is a {}.", "The image shows a {}."),
    "yes": ("There is a {}.", "The image contains a {}.", "A {} is present."),
    "no": ("There is no {}.", "The image contains no {}.", "No {} is present."),
}
"""Each kind's phrasings; the two answers of a pair have the same one."""
SYSTEM_PROMPT = "Answer in a sentence."
BLANK_QUESTION = "..."
GREY = (128, 128, 128)
IMAGE_SIDE = 64

Cell = tuple[str, ...]
"""What items must be drawn evenly over."""
ReadSplit = Callable[[Path, str], Sequence[Any]]
"""(folder, split) -> records."""


def question_kind(item: SourceItem) -> str:
    """One of `KINDS`."""
    answer = item.answers[0]
    if answer in EASY_VQA_COLORS:
        return "colour"
    if answer in EASY_VQA_SHAPES:
        return "shape"
    return "absence" if re.search(r"\b(no|not)\b", item.question) else "presence"


def _subject(question: str) -> str:
    """What a yes/no question asks for: "red shape", "circle"."""
    found = [word for word in re.findall(r"[a-z]+", question) if word in (*EASY_VQA_COLORS, *EASY_VQA_SHAPES)]
    return f"{found[0]} shape" if found[0] in EASY_VQA_COLORS else found[0]


def sentences(item: SourceItem, phrasing: int, wrong: str | None = None) -> tuple[str, str]:
    """The right and a wrong answer to an item's question, as sentences.

    Args:
        phrasing: 0 to 2.
        wrong: colour or shape of the wrong answer; a yes/no question has only one.

    >>> sentences(SourceItem("", "is there not a red shape?", ("no",)), 0)
    ('There is a red shape.', 'There is no red shape.')
    """
    kind, answer = question_kind(item), item.answers[0]
    if kind in ATTRIBUTES:
        return SENTENCES[kind][phrasing].format(answer), SENTENCES[kind][phrasing].format(wrong)
    subject, is_there = _subject(item.question), (answer == "yes") == (kind == "presence")
    there, not_there = SENTENCES["yes"][phrasing].format(subject), SENTENCES["no"][phrasing].format(subject)
    return (there, not_there) if is_there else (not_there, there)


def _cells(kind: str, items: Sequence[SourceItem]) -> dict[Cell, list[SourceItem]]:
    """The items of a kind by what they must be drawn evenly over."""
    cells: dict[Cell, list[SourceItem]] = defaultdict(list)
    values = {"colour": EASY_VQA_COLORS, "shape": EASY_VQA_SHAPES}.get(kind, ())
    for item in items:
        if question_kind(item) != kind:
            continue
        if values:
            for wrong in values:
                if wrong != item.answers[0]:
                    cells[item.answers[0], wrong].append(item)
        else:
            cells[item.question, item.answers[0]].append(item)
    # What occurs without its opposite would give the answer away.
    return {cell: cells[cell] for cell in sorted(cells) if _opposite(kind, cell) in cells}


def _opposite(kind: str, cell: Cell) -> Cell:
    """The cell whose right answer is this one's wrong answer."""
    if kind in ATTRIBUTES:
        return cell[1], cell[0]
    return cell[0], "no" if cell[1] == "yes" else "yes"


def _draw(kind: str, items: Sequence[SourceItem], count: int, rng: random.Random) -> Iterator[tuple[SourceItem, str]]:
    """`count` items with the value of their wrong answer; the cells take turns, each followed by its opposite, and so
    do the items of a cell."""
    cells = _cells(kind, items)
    for found in cells.values():
        rng.shuffle(found)
    couples = [(cell, _opposite(kind, cell)) for cell in cells if cell < _opposite(kind, cell)]
    rng.shuffle(couples)
    order = [cell for couple in couples for cell in couple]
    turns = {cell: itertools.cycle(found) for cell, found in cells.items()}
    for cell in itertools.islice(itertools.cycle(order), count):
        yield next(turns[cell]), cell[1]


def _preference(name: str, item: SourceItem, right: str, wrong: str, rng: random.Random) -> dict:
    answers, ranking = [right, wrong], [0, 1]
    if rng.random() < 0.5:  # the place of the right answer tells nothing
        answers.reverse()
        ranking.reverse()
    row = {"id": name, "query": item.question, "image": item.image, "response": answers, "human_ranking": ranking}
    return {**row, "kind": name.split("-")[0]}


def _preferences(split: str, items: Sequence[SourceItem], counts: dict[str, int], rng: random.Random) -> list[dict]:
    rows = []
    for kind, count in counts.items():
        for number, (item, wrong) in enumerate(_draw(kind, items, count, rng)):
            answers = sentences(item, rng.randrange(3), wrong)
            rows.append(_preference(f"{kind}-{split}-{number}", item, *answers, rng))
    rng.shuffle(rows)
    return rows


def _tells(item: SourceItem) -> tuple[str, str]:
    """What the right answer to an item's question says: (colour or shape, yes or no)."""
    if question_kind(item) in ATTRIBUTES:
        return item.answers[0], "yes"
    there = (item.answers[0] == "yes") == (question_kind(item) == "presence")
    return _subject(item.question).removesuffix(" shape"), "yes" if there else "no"


def _of_other_questions(split: str, items: Sequence[SourceItem], count: int, rng: random.Random) -> list[dict]:
    """Right answers against right answers to another question about the same image that say something else."""
    by_image: dict[str, list[SourceItem]] = defaultdict(list)
    for item in items:
        by_image[item.image].append(item)
    couples = [(item, other) for item in items for other in by_image[item.image] if _tells(other) != _tells(item)]
    rows = []
    for number, (item, other) in enumerate(rng.choices(couples, k=count) if couples else []):
        right, wrong = (sentences(one, rng.randrange(3), "")[0] for one in (item, other))
        rows.append(_preference(f"{OTHER_QUESTION}-{split}-{number}", item, right, wrong, rng))
    return rows


def _answer(name: str, item: SourceItem, wrong: str | None) -> dict:
    """A row with a prompt and the right sentence, in its first phrasing, which `answers` holds as from annotators."""
    right = sentences(item, 0, wrong)[0]
    turns = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": item.question}]
    row = {"id": name, "prompt": turns, "image": item.image, "completion": right}
    return {**row, "answers": [right] * ANNOTATORS, "kind": question_kind(item)}


def _answers(split: str, items: Sequence[SourceItem], counts: dict[str, int], rng: random.Random) -> list[dict]:
    rows = []
    for kind, count in counts.items():
        for number, (item, wrong) in enumerate(_draw(kind, items, count, rng)):
            rows.append(_answer(f"{kind}-{split}-{number}", item, wrong))
    rng.shuffle(rows)
    return rows


def _hasty(items: Sequence[SourceItem], count: int, kinds: Sequence[str], rng: random.Random) -> list[dict]:
    """Demonstrations of annotators who often tell the colour or the shape, whatever was asked."""
    seen: dict[str, list[SourceItem]] = defaultdict(list)
    for item in items:
        if question_kind(item) in ATTRIBUTES:
            seen[item.image].append(item)
    rows = []
    for kind, number in _divided(count, dict.fromkeys(kinds, 1)).items():
        for place, (item, wrong) in enumerate(_draw(kind, items, number, rng)):
            row = _answer(f"hasty-{kind}-{place}", item, wrong)
            beside = [other for other in seen[item.image] if question_kind(other) != kind]
            if beside and rng.random() < HASTY_SHARE:
                row["completion"] = sentences(rng.choice(beside), 0, "")[0]
            rows.append(row)
    rng.shuffle(rows)
    return rows


def _as_lessons(rows: list[dict]) -> list[dict]:
    """Rows to begin with, under ids of their own."""
    return [{**row, "id": f"lesson-{row['id']}"} for row in rows]


def _divided(total: int, weights: dict[str, int]) -> dict[str, int]:
    """`total` by weight, at least 1 each if there is any."""
    whole = sum(weights.values())
    return {name: max(1, total * weight // whole) if total else 0 for name, weight in weights.items()}


def _with_other_images(rows: Sequence[dict], rng: random.Random) -> list[dict]:
    """Every row with the image of another one, drawn so that no row keeps its own."""
    other = list(rows)
    rng.shuffle(other)
    return [
        {
            **row,
            "image": next(
                one["image"] for one in itertools.chain(other[number:], other) if one["image"] != row["image"]
            ),
        }
        for number, row in enumerate(rows)
    ]


def _training_pairs(
    items: Sequence[SourceItem], count: int, attributes_first: int, kinds: Sequence[str], rng: random.Random
) -> list[dict]:
    attributes = [kind for kind in kinds if kind in ATTRIBUTES]
    lessons = _preferences("train", items, _divided(attributes_first, dict.fromkeys(attributes, 1)), rng)
    beside = _of_other_questions("train", items, count // OTHER_SHARE, rng)
    weights = {kind: KINDS[kind] for kind in kinds}
    rows = _preferences("train", items, _divided(count - len(beside), weights), rng) + beside
    rng.shuffle(rows)
    return _as_lessons(lessons) + rows


def _read_back(written: dict[Path, int], read_preferences: ReadSplit) -> None:
    """Reads every file as its users will: chat rows below `answers` and `hasty`, preferences otherwise."""
    for path, count in written.items():
        if path.parent.name in ("answers", "hasty"):
            read_back(path.parent, path.stem, count, partial(load_rows, check_files=False))
        else:
            read_back(path.parent, path.stem, count, read_preferences)


def write_easy_preferences(
    folder: Path,
    pairs: int,
    attributes_first: int,
    held_out: int,
    answers: int,
    shapes_first: int,
    hasty: int,
    kinds: Sequence[str],
    seed: int,
    read_preferences: ReadSplit,
) -> dict[Path, int]:
    """Writes the files above.

    Args:
        pairs: of training.
        attributes_first: further pairs, about colours and shapes alone, before them: what tells whether a sentence
            is true of an image is found there sooner by far.
        held_out: pairs of validation and of test, each; as many answers.
        answers: of training, drawn evenly over the kinds.
        shapes_first: further answers, about shapes alone, before them: colours, once seen, keep a small model from
            seeing shapes.
        hasty: demonstrations of which most answer another question.
        kinds: of questions.
        read_preferences: (folder, split) -> the preferences that were written, read as their users will.

    Returns:
        Number of records of each file; one that would be empty is left out.
    """
    written: dict[Path, int] = {}

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).unlink(missing_ok=True)  # of an earlier run
        if rows:
            write_jsonl(folder / name, rows)
            written[folder / name] = len(rows)

    splits = load_splits(EASY_VQA, SHARES, seed)
    with writing(folder):
        for split, items in splits.items():
            rng = random.Random(f"{seed}/{split}")
            items = [item for item in items if question_kind(item) in kinds]
            evenly = _divided(answers if split == "train" else held_out, dict.fromkeys(kinds, 1))
            if split == "train":
                rows = _training_pairs(items, pairs, attributes_first, kinds, rng)
                lessons = _as_lessons(_answers(split, items, {"shape": shapes_first}, rng))
            else:
                rows, lessons = _preferences(split, items, evenly, rng), []
            write(f"{split}.jsonl", rows)
            write(f"answers/{split}.jsonl", [*lessons, *_answers(split, items, evenly, rng)])
            if split == "train" and hasty:
                write("hasty/train.jsonl", _hasty(items, hasty, kinds, rng))
            if split == "test":
                blank = folder / "blank.png"
                with atomic_write(blank, "wb") as file:
                    Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), GREY).save(file, "PNG")
                write("test_blank_image.jsonl", [{**row, "image": blank.name} for row in rows])
                write("test_other_image.jsonl", _with_other_images(rows, rng))
                write("test_blank_question.jsonl", [{**row, "query": BLANK_QUESTION} for row in rows])
                write("test_other_question.jsonl", _of_other_questions(split, items, held_out // OTHER_SHARE, rng))
        _read_back(written, read_preferences)
    return written
