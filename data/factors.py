"""Records of the factor predictor: images, free texts on what should be filtered, and the factors that they mean.

    python -m data.factors --dataset_name annotations.jsonl --output_dir outputs/factors/data
    python -m data.factors --dataset_name annotations.jsonl --validate_only

Reads annotations, one image a line, and writes them with their factors, divided into training, validation and test:

annotation   {"image_path", "image_id"?, "filter_factor_texts": [text]}
labelled     {"image_path", "image_id"?, "filter_factor_texts"?: [text], "factors": [factor id]}

and `factors.json`, the set of factors with the texts that mean each (`data/factor_labels/clusters.py`). A folder with
`train`, `validation` and `test` keeps its splits. Factors are made from the training split alone, or from
`--factor_list`, a file of `{"filter_factors": [text]}`; texts that mean none of them are dropped, and counted.
Paths are relative to the file they stand in. Images may also come as bytes, and are then written as files.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, field_validator, model_validator

from data.cli.arguments import UNNAMED, option, seed_option, skip_unreadable_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1, Range
from data.factor_labels.clusters import DEFAULT_THRESHOLD, FactorSet, abstract_factors
from data.factor_labels.text_encoder import Encode, encoder_option, load_text_encoder
from data.io.counts import counted
from data.io.digests import image_bytes_digest
from data.io.image_sources import picture_keys
from data.io.images import describe_source, resolve_image
from data.io.output_folder import describe_sizes, refuse_own_input, relative_image_path, write_split, writing
from data.io.records import (
    Location,
    Record,
    RecordError,
    Source,
    available_splits,
    base_folder,
    check_finished,
    describe_problems,
    field_error,
    parsed_rows,
    read_json,
    read_rows,
    write_json,
)
from data.io.splits import SPLITS, DivisionArguments, Shares, divide
from data.io.unreadable import LeftOut, Skipping, readable_rows
from data.reports.pool import ItemId
from data.rows.row_images import gather_images

FACTORS_FILE = "factors.json"
DROPPED_SHOWN = 10


class FactorAnnotation(Record):
    """An image and what an annotator wrote about it.

    Attributes:
        image_path: the image, also given under another of the usual names (`data/rows/row_images.py`): a path, bytes,
            or `{"bytes", "path"}`.
    """

    model_config = ConfigDict(extra="forbid")

    image_path: Any
    image_id: ItemId | None = None
    filter_factor_texts: list[StrictStr]

    @model_validator(mode="before")
    @classmethod
    def _one_image(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        columns = gather_images(row, set(cls.model_fields) - {"image_path"}, refuse_others=False)
        images = columns.pop("images")
        if len(images) > 1:
            raise field_error("image_path", "expected one image", images)
        return {**columns, **({"image_path": images[0]} if images else {})}

    @field_validator("filter_factor_texts")
    @classmethod
    def _no_empty_texts(cls, texts: list[str]) -> list[str]:
        if any(not text.strip() for text in texts):
            raise ValueError("texts must not be empty")
        return texts


class LabelledImage(FactorAnnotation):
    """An annotation with the ids of the factors that its texts mean; the texts may be left out."""

    filter_factor_texts: list[StrictStr] = []
    factors: list[StrictStr]


class FactorList(Record):
    """Texts that factors are to be made of, chosen by a person."""

    model_config = ConfigDict(extra="forbid")

    filter_factors: list[StrictStr] = Field(min_length=1)


# -- reading ----------------------------------------------------------------------------------------------------------


def _read_object(path: Path, record_type: type[BaseModel]) -> Any:
    """A JSON file that holds one object.

    Raises:
        RecordError: no such file, not JSON, not UTF-8, or a field that is wrong.
    """
    content = read_json(path)
    try:
        return record_type.model_validate(content)
    except ValidationError as error:
        raise RecordError(describe_problems(error, Location(str(path), 1, "object"))) from error


def load_factor_list(path: str | Path) -> list[str]:
    """Texts of a file of `{"filter_factors": [text]}`."""
    texts = _read_object(Path(path), FactorList).filter_factors
    empty = [number for number, text in enumerate(texts, start=1) if not text.strip()]
    if empty:
        raise RecordError([f"{path}: field 'filter_factors.{empty[0] - 1}': expected a text, found an empty one"])
    return texts


def load_factor_set(folder: str | Path) -> FactorSet:
    """The factors in the folder of a labelled data set, or of a file."""
    path = Path(folder)
    check_finished(path if path.is_dir() else path.parent)
    return _read_object(path / FACTORS_FILE if path.is_dir() else path, FactorSet)


def _load(
    rows: Iterable[tuple[Location, Any]],
    base: Path,
    record_type: type[FactorAnnotation],
    allow_empty: bool,
    check_files: bool,
    known: Sequence[str] | None = None,
    left_out: LeftOut | None = None,
) -> list[Any]:
    records: list[Any] = []
    problems: list[str] = []
    places: list[str] = []
    where: dict[Any, Location] = {}  # by what no two images share: the path, or the bytes of the file
    for location, record in parsed_rows(rows, record_type, problems):
        record = record.model_copy(update={"image_path": resolve_image(record.image_path, base)})
        if not record.filter_factor_texts and not allow_empty:
            expected = "expected at least one text; images that nothing applies to need --allow_empty"
            problems.append(f"{location}: field 'filter_factor_texts': {expected}, found []")
        for factor in getattr(record, "factors", ()):
            if known is not None and factor not in known:
                problems.append(
                    f"{location}: field 'factors': unknown factor {factor!r}; expected some of {', '.join(known)}"
                )
        image = record.image_path
        first = where.setdefault(image.get("bytes") if isinstance(image, dict) else image, location)
        if first is not location:
            name = describe_source(record.image_path)
            problems.append(f"{location}: field 'image_path': {name} is also that of {first}")
        places.append(str(location))
        records.append(record)
    images_of = lambda record: [record.image_path]  # noqa: E731
    return readable_rows(records, places, problems, left_out, images_of, "image_path", check_files=check_files)


def parse_annotations(
    rows: Iterable[tuple[Location, Any]],
    base: Path,
    allow_empty: bool = False,
    check_files: bool = True,
    left_out: LeftOut | None = None,
) -> list[FactorAnnotation]:
    """Annotations with absolute paths.

    Args:
        base: the folder that relative paths start from.
        allow_empty: an image may have no texts, as an example to which no factor applies.
        check_files: decode every image.
        left_out: notes the annotations whose image cannot be read, which are left out in place of an error.

    Raises:
        RecordError: lists every problem of every row.
    """
    return _load(rows, base, FactorAnnotation, allow_empty, check_files, left_out=left_out)


def load_labelled(source: Source, split: str, factors: Sequence[str], check_files: bool = True) -> list[LabelledImage]:
    """Labelled images of one split, with absolute paths.

    Args:
        factors: the ids that exist.

    Raises:
        RecordError: lists every problem of every row, unknown factors and missing images among them.
    """
    records = _load(
        read_rows(source, split), base_folder(source), LabelledImage, True, check_files, known=list(factors)
    )
    if not records:
        raise RecordError([f"{source}: the {split} split has no rows"])
    return records


def multi_hot(records: Sequence[LabelledImage], factors: Sequence[str]) -> np.ndarray:
    """float32 (N, factors): 1 where a factor applies."""
    column = {factor: number for number, factor in enumerate(factors)}
    labels: np.ndarray = np.zeros((len(records), len(factors)), dtype=np.float32)
    for row, record in enumerate(records):
        labels[row, [column[factor] for factor in record.factors]] = 1
    return labels


# -- labelling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """What labelling gave.

    Attributes:
        splits: records by split.
        dropped_texts: texts that mean no factor -> number of annotations that use them.
    """

    splits: dict[str, list[LabelledImage]]
    dropped_texts: Counter


def label(splits: dict[str, list[FactorAnnotation]], factors: FactorSet, encode: Encode) -> Labelled:
    """Annotations with the ids of their factors, in the factors' order, each once."""
    texts = {text for records in splits.values() for record in records for text in record.filter_factor_texts}
    ids = factors.map_texts(texts, encode)
    order = factors.ids
    dropped: Counter[str] = Counter()
    labelled: dict[str, list[LabelledImage]] = {}
    for split, records in splits.items():
        labelled[split] = []
        for record in records:
            found = {ids[text] for text in record.filter_factor_texts}
            dropped.update(text for text in record.filter_factor_texts if ids[text] is None)
            kept = [factor for factor in order if factor in found]
            labelled[split].append(LabelledImage(**record.model_dump(), factors=kept))
    return Labelled(labelled, dropped)


def without_rare(factors: FactorSet, splits: dict[str, list[FactorAnnotation]], encode: Encode, least: int) -> tuple:
    """The factors that at least so many training images have, and those left out with their numbers of images.

    Raises:
        RecordError: no factor is left.
    """
    labelled = label({"train": splits["train"]}, factors, encode).splits["train"]
    images = Counter(factor for record in labelled for factor in record.factors)
    kept = tuple(factor for factor in factors.factors if images[factor.id] >= least)
    if not kept:
        most = max(images.values(), default=0)
        raise RecordError([f"--min_count {least}: no factor is left; the most frequent one has {most} images"])
    rare = {factor.id: images[factor.id] for factor in factors.factors if images[factor.id] < least}
    return factors.model_copy(update={"factors": kept}), rare


def write_labelled(output_dir: Path, labelled: Labelled, factors: FactorSet, skipping: Skipping) -> None:
    """Writes the splits that have records, `factors.json`, and what was left out.

    Raises:
        RecordError: what was written cannot be read back, or another process is writing there.
    """
    base = output_dir.resolve()
    with writing(output_dir):
        write_json(output_dir / FACTORS_FILE, factors.model_dump())
        known = load_factor_set(output_dir).ids
        for split, records in labelled.splits.items():
            rows = [
                record.model_dump(exclude_none=True) | {"image_path": relative_image_path(record.image_path, base)}
                for record in records
            ]
            write_split(output_dir, split, rows, partial(load_labelled, factors=known, check_files=False))
        skipping.write(output_dir)


def describe(factors: FactorSet, labelled: Labelled, rare: dict[str, int]) -> str:
    """Images of each factor in each split, and what was dropped, as a table."""
    splits = labelled.splits
    counts = {split: Counter(f for record in records for f in record.factors) for split, records in splits.items()}
    width = max(len(factor) for factor in [*factors.ids, "without any", "factor"]) + 2
    lines = [f"{'factor':<{width}}" + "".join(f"{split:>12}" for split in splits) + "   texts"]
    for factor in factors.factors:
        figures = "".join(f"{counts[split][factor.id]:>12}" for split in splits)
        lines.append(f"{factor.id:<{width}}{figures}   {len(factor.texts)}, such as '{factor.name}'")
    empty = [sum(not record.factors for record in records) for records in splits.values()]
    lines.append(f"{'without any':<{width}}" + "".join(f"{count:>12}" for count in empty))
    if rare:
        shown = ", ".join(f"{factor} ({count} images)" for factor, count in rare.items())
        lines.append(f"dropped {len(rare)} rare factors: {shown}")
    dropped = labelled.dropped_texts
    if dropped:
        shown = ", ".join(f"'{text}' ({count})" for text, count in dropped.most_common(DROPPED_SHOWN))
        more = f" and {len(dropped) - DROPPED_SHOWN} more" if len(dropped) > DROPPED_SHOWN else ""
        lines.append(f"dropped {len(dropped)} texts that mean no factor, {dropped.total()} times: {shown}{more}")
    else:
        lines.append("dropped no text")
    return "\n".join(lines)


# -- the command ------------------------------------------------------------------------------------------------------


def _load_splits(
    source: Path, allow_empty: bool, shares: Shares, seed: int, skipping: Skipping
) -> dict[str, list[FactorAnnotation]]:
    """Annotations by split: a folder's own splits, or a file's rows divided."""
    if not source.is_dir():
        left_out = skipping.of("annotations")
        rows = parse_annotations(read_rows(source), base_folder(source), allow_empty, left_out=left_out)
        if not rows:
            raise RecordError([f"{source}: expected at least one annotation, found none"])
        rows.sort(key=_name_of)  # the file's order must not decide what is trained on
        picture_of = dict(zip(map(id, rows), picture_keys(row.image_path for row in rows), strict=True))
        return divide(rows, shares, seed, keys=lambda record: [picture_of[id(record)]])
    splits, errors = {}, []
    for split in dict.fromkeys(("train", *available_splits(source, SPLITS))):
        left_out = skipping.of(f"{split} annotations")
        located = read_rows(source, split)
        try:
            splits[split] = parse_annotations(located, base_folder(source), allow_empty, left_out=left_out)
        except RecordError as error:
            errors.append(error)
    try:
        problems = _pictures_on_two_sides(source, splits)
    except RecordError as error:  # pictures that could be read a moment ago
        raise RecordError.joined([*errors, error]) from error
    if errors or problems:
        raise RecordError.joined(errors, problems)
    return splits


def _name_of(record: FactorAnnotation) -> str:
    """The path of a record's image, or the digest of its bytes."""
    image = record.image_path
    return image if isinstance(image, str) else image_bytes_digest(image)


def _pictures_on_two_sides(source: Path, splits: dict[str, list[FactorAnnotation]]) -> list[str]:
    """A sentence for every picture that is in two splits, under whatever names."""
    images = [(split, record.image_path) for split, records in splits.items() for record in records]
    first: dict[str, tuple[str, str]] = {}
    problems = []
    for (split, image), picture in zip(images, picture_keys(image for _, image in images), strict=True):
        path = describe_source(image)
        other_split, other_path = first.setdefault(picture, (split, path))
        if other_split != split:
            name = "" if other_path == path else f" as {other_path}"
            problems.append(f"{source}: {path} of the {split} split is also in the {other_split} split{name}")
    return problems


@dataclass(kw_only=True)
class FactorDataArguments(DivisionArguments):
    """Which annotations to read, and how factors are made of their texts."""

    dataset_name: str = option(
        "JSONL, JSON or parquet file, or a folder with the splits", old=("annotations", UNNAMED)
    )
    factor_list: Path | None = option("texts to make factors of, instead of the training split's", None)
    encoder: str = encoder_option()
    threshold: float = option("smallest cosine of texts of one factor", DEFAULT_THRESHOLD, within=Range(-1, 1))
    min_count: int = option("drop factors of fewer training images", 1, within=AT_LEAST_1)
    allow_empty: bool = option("images may have no texts: no factor applies", False)
    skip_unreadable: bool = skip_unreadable_option()
    seed: int = seed_option("of the shuffle before splitting a file", 42)


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(FactorDataArguments, argv)
    source = Path(arguments.dataset_name)
    try:
        if arguments.output_dir is not None:
            refuse_own_input(source, arguments.output_dir)
        skipping = Skipping(arguments.skip_unreadable)
        splits = _load_splits(source, arguments.allow_empty, arguments.shares, arguments.seed, skipping)
        skipping.report()
        listed = load_factor_list(arguments.factor_list) if arguments.factor_list else None
        print(f"{source}: {counted(sum(map(len, splits.values())), 'valid annotation')}")
        if arguments.validate_only:
            return
        texts = listed or [text for record in splits["train"] for text in record.filter_factor_texts]
        if not texts:
            raise RecordError([f"{source}: the training split has no texts to make factors of"])
        encode = load_text_encoder(arguments.encoder)
        factors = abstract_factors(texts, encode, arguments.encoder, arguments.threshold)
        factors, rare = without_rare(factors, splits, encode, arguments.min_count)
        labelled = label(splits, factors, encode)
        assert arguments.output_dir is not None  # or the annotations are only validated
        write_labelled(arguments.output_dir, labelled, factors, skipping)
    except RecordError as error:
        sys.exit("\n".join([*error.problems, f"error: {error.count} in {source}"]))
    print(describe(factors, labelled, rare))
    sizes = describe_sizes({split: len(records) for split, records in labelled.splits.items()})
    print(f"written to {arguments.output_dir}: {sizes}")


if __name__ == "__main__":
    main()
