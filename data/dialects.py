"""A visual question answering task whose answers can only be read from shown examples.

    python -m data.dialects --output_dir outputs/dialects --seed 0

Images and questions are easy-VQA's, unchanged. Its open questions are phrased in six ways. Each way is a dialect with
words of its own: (dialect, colour) and (dialect, shape) are answered by nouns that a seed draws, so that no model can
know them. An example tells a noun only to a query of the same dialect with the same colour, or shape. Two dialects
answer with two nouns, for shape and for colour: two examples may each tell one of them.

Writes records of data/vqa.py: `train.jsonl` (examples to choose from), `queries.jsonl` (training queries),
`dev.jsonl` and `test.jsonl`. No image stands in two of them. `question_type` is the dialect and `answer_type` tells
how many attributes the answer has; `color` and `shape` are for hand-written rules.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.cli.arguments import option, seed_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1
from data.io.counts import counted
from data.io.image_sources import EASY_VQA, EASY_VQA_COLORS, EASY_VQA_SHAPES, SourceItem, load_splits
from data.io.output_folder import write_split, writing
from data.io.records import RecordError
from data.rows.answers import ANNOTATORS
from data.vqa import load_records

VALUES = {"color": EASY_VQA_COLORS, "shape": EASY_VQA_SHAPES}

NOUNS = tuple(
    "apple arrow bag ball barn basket bear bell bird boat bone book bottle bread bridge brush bucket button camel "
    "candle carrot castle cat chair cheese clock cloud coat coin cup desk dog door drum eagle engine farm feather "
    "fish flag flute forest garden glove goat hammer hat honey horse island jacket kettle key ladder lake lamp leaf "
    "lemon lion mirror moon needle ocean onion paper pencil pepper piano pillow river rope salt sand shirt spoon "
    "stone table tiger tower tree wagon wheel window wolf".split()
)


@dataclass(frozen=True)
class Dialect:
    """A phrasing of questions.

    Args:
        attributes: what the nouns of an answer stand for, in their order.
    """

    name: str
    pattern: str
    attributes: tuple[str, ...]


_ANY_SHAPE, _ANY_COLOR = "|".join((*EASY_VQA_SHAPES, "shape")), "|".join(EASY_VQA_COLORS)

DIALECTS = (
    Dialect("what color is", rf"what color is the ({_ANY_SHAPE})\?", ("color",)),
    Dialect("what is the color of", rf"what is the color of the ({_ANY_SHAPE})\?", ("color",)),
    Dialect("what is the shape", rf"what is the ({_ANY_COLOR}) shape\?", ("shape",)),
    Dialect("what shape is in the image", r"what shape is in the image\?", ("shape",)),
    Dialect("what shape is present", r"what shape is present\?", ("shape", "color")),
    Dialect("what shape does the image contain", r"what shape does the image contain\?", ("shape", "color")),
)

KEYS = tuple(
    (dialect.name, value) for dialect in DIALECTS for attribute in dialect.attributes for value in VALUES[attribute]
)
"""Everything that has a noun: (name of the dialect, colour or shape)."""


@dataclass(frozen=True)
class Scene:
    """An image of one coloured shape with one of its questions."""

    image: str
    question: str
    dialect: Dialect
    color: str
    shape: str

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """One of `KEYS` for each noun of the answer."""
        return tuple((self.dialect.name, getattr(self, attribute)) for attribute in self.dialect.attributes)


def find_dialect(question: str) -> Dialect | None:
    """The dialect of a question; None for those that are answered by yes or no.

    >>> find_dialect("what color is the circle?").name
    'what color is'
    """
    return next((dialect for dialect in DIALECTS if re.fullmatch(dialect.pattern, question)), None)


def _stated_values(item: SourceItem) -> dict[str, str]:
    """The colour and the shape that a question and its answer say the image shows."""
    answer = item.answers[0]
    words = re.findall("[a-z]+", item.question)
    if answer in ("yes", "no") and (answer == "yes") == (not {"no", "not"}.isdisjoint(words)):
        return {}  # what is asked for is not there
    return {attribute: word for word in (*words, answer) for attribute, values in VALUES.items() if word in values}


def shown_values(items: Iterable[SourceItem]) -> dict[str, dict[str, str]]:
    """Image -> its color and shape, of those whose questions say both."""
    values: dict[str, dict[str, str]] = {}
    for item in items:
        values.setdefault(item.image, {}).update(_stated_values(item))
    return {image: shown for image, shown in values.items() if len(shown) == len(VALUES)}


def find_scenes(items: Iterable[SourceItem]) -> list[Scene]:
    """The open questions about images whose colour and shape their questions reveal."""
    items = list(items)
    values = shown_values(items)
    scenes = []
    for item in items:
        dialect = find_dialect(item.question)
        if dialect is not None and item.image in values:
            scenes.append(Scene(item.image, item.question, dialect, **values[item.image]))
    return scenes


def draw_nouns(seed: int) -> dict[tuple[str, str], str]:
    """A different noun for each of `KEYS`."""
    return dict(zip(KEYS, random.Random(seed).sample(NOUNS, len(KEYS)), strict=True))


def answer_of(scene: Scene, nouns: dict[tuple[str, str], str]) -> str:
    return " ".join(nouns[key] for key in scene.keys)


def _balanced(scenes: list[Scene], size: int, split: str, rng: random.Random) -> list[Scene]:
    """`size` scenes, as many of each dialect, in random order."""
    chosen = []
    for number, dialect in enumerate(DIALECTS):
        of_dialect = [scene for scene in scenes if scene.dialect == dialect]
        share = len(range(number, size, len(DIALECTS)))
        if share > len(of_dialect):
            raise RecordError(
                [f"{split}: {size} records need {share} questions '{dialect.name}', found {len(of_dialect)}"]
            )
        chosen += rng.sample(of_dialect, share)
    rng.shuffle(chosen)
    return chosen


def _divide_images(scenes: list[Scene], share: float, rng: random.Random) -> tuple[list[Scene], list[Scene]]:
    images = sorted({scene.image for scene in scenes})
    first = set(rng.sample(images, round(share * len(images))))
    return [scene for scene in scenes if scene.image in first], [scene for scene in scenes if scene.image not in first]


def training_and_test_scenes() -> tuple[list[Scene], list[Scene]]:
    """Those of easy-VQA's training images, and those of its test images."""
    items = load_splits(EASY_VQA, (1.0, 0.0, 0.0), seed=0)
    return find_scenes(items["train"]), find_scenes(items["test"])


def draw_splits(sizes: dict[str, int], seed: int) -> dict[str, list[Scene]]:
    """Scenes of `train`, `queries` (easy-VQA's training images), `dev` and `test` (its test images).

    Args:
        sizes: number of records of each.

    Raises:
        RecordError: easy-VQA has fewer questions than asked for, or is not installed.
    """
    rng = random.Random(seed)
    training, held_out = training_and_test_scenes()
    parts = {}
    for scenes, (first, second) in ((training, ("train", "queries")), (held_out, ("dev", "test"))):
        share = sizes[first] / max(1, sizes[first] + sizes[second])
        parts[first], parts[second] = _divide_images(scenes, share, rng)
    return {split: _balanced(parts[split], size, split, rng) for split, size in sizes.items()}


def _row(number: int, split: str, scene: Scene, nouns: dict[tuple[str, str], str]) -> dict:
    return {
        "id": f"{split}-{number}",
        "image": scene.image,
        "question": scene.question,
        "answers": [answer_of(scene, nouns)] * ANNOTATORS,
        "question_type": scene.dialect.name,
        "answer_type": "two attributes" if len(scene.keys) == 2 else "one attribute",
        "color": scene.color,
        "shape": scene.shape,
    }


@dataclass(kw_only=True)
class DialectArguments:
    """How many records to draw."""

    output_dir: Path = option("folder to write the records to")
    seed: int = seed_option("of the nouns and of the choice of records")
    train_examples: int = option("examples to choose from", 2000, within=AT_LEAST_1)
    train_queries: int = option("queries to train on", 3000, within=AT_LEAST_1)
    dev: int = option("queries to choose a model by", 400, within=AT_LEAST_1)
    test: int = option("queries to report on", 1000, within=AT_LEAST_1)


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(DialectArguments, argv)
    sizes = {
        "train": arguments.train_examples,
        "queries": arguments.train_queries,
        "dev": arguments.dev,
        "test": arguments.test,
    }
    splits = draw_splits(sizes, arguments.seed)
    nouns = draw_nouns(arguments.seed)
    with writing(arguments.output_dir) as folder:
        for split, scenes in splits.items():
            rows = [_row(number, split, scene, nouns) for number, scene in enumerate(scenes)]
            write_split(folder, split, rows, partial(load_records, check_files=False))
            print(f"{counted(len(scenes), 'record')} written to {folder / f'{split}.jsonl'}")


if __name__ == "__main__":
    main()
