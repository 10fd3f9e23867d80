"""Annotations for the factor predictor on easy-VQA's images: known damages, or what its questions state.

    python -m data.easy_factors --kind damages --output_dir outputs/factors/damages --images 3000
    python -m data.easy_factors --kind attributes --output_dir outputs/factors/attributes --images 2000

Writes train.jsonl, validation.jsonl and test.jsonl for `python -m data.factors`, with the phrases that different
annotators would use for the same thing.

damages      images damaged as those of `data/quality_reports.py` are (`data/reports/damage.py`): about a quarter
             not at all, half in one way, and a quarter in their light and one more way; each stands out in the
             aspects of its damages and in no other
attributes   the images as they are, with the shape and the colour that their questions ask for

Training, validation and test images never overlap.
"""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.cli.arguments import option, seed_option, skip_unreadable_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.processes import process_pool
from data.cli.ranges import AT_LEAST_1
from data.dialects import shown_values
from data.factors import FactorAnnotation, parse_annotations
from data.io.image_sources import EASY_VQA, SourceItem, load_splits, readable_items
from data.io.images import open_image
from data.io.output_folder import describe_sizes, write_split, writing
from data.io.records import RecordError, atomic_write, base_folder, read_rows
from data.io.splits import DEFAULT_SHARES, SPLITS, split_sizes
from data.io.unreadable import Skipping
from data.reports.aspects import BLUR, EXPOSURE, RESOLUTION, SHAPE, Aspect, stands_out
from data.reports.damage import DAMAGES, Draft
from data.reports.damaged_pools import ATTEMPTS, DamageError
from data.reports.measurements import HEALTHY_RESOLUTION, measure_image, measure_items
from data.reports.pool import Item

KINDS = ("damages", "attributes")
JUDGED = (BLUR, EXPOSURE, RESOLUTION, SHAPE)
"""The aspects that a picture has by itself."""
NUMBER_OF_DAMAGES = (0, 1, 1, 2)
"""Drawn from evenly."""

PHRASES = {
    "blur": ("blurry image", "the picture is blurry", "blurred photo", "image looks blurry"),
    "soft_upscale": ("blurry image", "the picture is blurry", "blurred photo", "image looks blurry"),
    "underexposure": ("too dark", "the image is too dark", "very dark picture"),
    "overexposure": ("overexposed", "the image is overexposed", "overexposed photo"),
    "pixelation": ("pixelated", "the picture looks pixelated", "pixelated image"),
    "shrinking": ("image too small", "the picture is too small", "very small image"),
    "padding": ("elongated strip", "image is a long strip", "long narrow strip"),
}
"""What annotators call a damage. Two ways to lose sharpness look alike, and are called the same."""

_SHAPE_PHRASES = ("a {0}", "the shape is a {0}", "it contains a {0}")
_COLOUR_PHRASES = ("{0}", "{0} colour", "colored {0}")


@dataclass(frozen=True)
class Picture:
    """A damaged picture to be made: the same number always gives the same one."""

    path: Path
    sources: tuple[str, ...]
    seed: str


def _outstanding(draft: Draft, side_limit: float) -> set[Aspect]:
    row = measure_items([Item(id=0, image="")], [measure_image(draft.image)])[0]
    return {aspect for aspect in JUDGED if stands_out(aspect, row, side_limit)}


def _try_once(source: str, names: list[str], rng: random.Random) -> Draft | None:
    """The image with the damages, or `None` where it does not stand out as it should."""
    draft = Draft(open_image(source))
    side_limit = HEALTHY_RESOLUTION * measure_image(draft.image)["side"]
    if _outstanding(draft, side_limit):
        return None
    for name in names:
        draft = DAMAGES[name].apply(draft, rng, [])
    expected = {DAMAGES[name].aspect for name in names}
    return draft if _outstanding(draft, side_limit) == expected else None


def make_picture(picture: Picture) -> dict:
    """Draws, damages and stores one picture; its annotation, with the path as it is given.

    Raises:
        DamageError: no image of the source fits, after many tries.
    """
    rng = random.Random(picture.seed)
    count = rng.choice(NUMBER_OF_DAMAGES)
    for _ in range(ATTEMPTS):
        others = [aspect for aspect in JUDGED if aspect != EXPOSURE]
        aspects = rng.sample(JUDGED, 1) if count == 1 else [rng.choice(others), EXPOSURE][:count]
        names = [rng.choice([name for name in PHRASES if DAMAGES[name].aspect == aspect]) for aspect in aspects]
        draft = _try_once(rng.choice(picture.sources), names, rng)
        if draft is not None:
            with atomic_write(picture.path, "wb") as file:
                draft.image.save(file, "PNG", compress_level=1)
            texts = [rng.choice(PHRASES[name]) for name in names]
            return {"image_path": str(picture.path), "filter_factor_texts": texts}
    raise DamageError(f"{picture.path}: no image could be damaged in {count} ways as planned ({ATTEMPTS} tries)")


def _read(folder: Path, split: str) -> list[FactorAnnotation]:
    return parse_annotations(read_rows(folder, split), base_folder(folder), allow_empty=True)


def write_damages(output_dir: Path, splits: dict[str, list[SourceItem]], sizes: dict, seed: int, workers: int) -> None:
    """Pictures below `images/`, and the annotations of each split."""
    shutil.rmtree(output_dir / "images", ignore_errors=True)
    for split, size in sizes.items():
        sources = tuple(sorted({str(item.image) for item in splits[split]}))
        folder = output_dir / "images" / split
        tasks = [Picture(folder / f"{number:05d}.png", sources, f"{seed} {split} {number}") for number in range(size)]
        with process_pool(workers) as processes:
            made = processes.map(make_picture, tasks, chunksize=16)
            rows = list(tqdm(made, total=size, desc=f"{split} pictures", unit="picture"))
        for row in rows:
            row["image_path"] = os.path.relpath(row["image_path"], output_dir)
        write_split(output_dir, split, rows, _read)


def stated_attributes(items: list[SourceItem]) -> dict[str, tuple[str, str]]:
    """Image path -> (shape, colour), where its questions state both.

    "what color is the circle? red", "is there a red shape? yes" and "is there not a circle? no" state them.
    """
    values = shown_values(items)
    return {image: (values[image]["shape"], values[image]["color"]) for image in sorted(values)}


def write_attributes(output_dir: Path, splits: dict[str, list[SourceItem]], sizes: dict, seed: int) -> None:
    """Annotations of each split; the images stay where they are."""
    base = output_dir.resolve()
    for split, size in sizes.items():
        rng = random.Random(f"{seed} {split}")
        stated = stated_attributes(splits[split])
        if size > len(stated):
            raise RecordError([f"--images: {size} wanted in the {split} split, easy-VQA has {len(stated)}"])
        rows = []
        for image in rng.sample(sorted(stated), size):
            shape, colour = stated[image]
            texts = [rng.choice(_SHAPE_PHRASES).format(shape), rng.choice(_COLOUR_PHRASES).format(colour)]
            rows.append({"image_path": os.path.relpath(image, base), "filter_factor_texts": texts})
        write_split(output_dir, split, rows, _read)


@dataclass(kw_only=True)
class EasyFactorArguments:
    """Which annotations to make of how many images."""

    kind: str = option("what the annotations say", choices=KINDS)
    output_dir: Path = option("folder to write the annotations to")
    images: int = option("all splits together, divided 8 : 1 : 1", 2000, within=AT_LEAST_1)
    seed: int = seed_option("of damages and phrases")
    workers: int = option("processes that damage images", os.cpu_count(), within=AT_LEAST_1)
    skip_unreadable: bool = skip_unreadable_option()


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(EasyFactorArguments, argv)
    sizes = dict(zip(SPLITS, split_sizes(arguments.images, DEFAULT_SHARES), strict=True))
    skipping = Skipping(arguments.skip_unreadable)
    splits = {
        split: readable_items(items, skipping.of(f"{split} items"))
        for split, items in load_splits(EASY_VQA, DEFAULT_SHARES, arguments.seed).items()
    }
    skipping.report()
    with writing(arguments.output_dir) as folder:
        if arguments.kind == "damages":
            write_damages(folder, splits, sizes, arguments.seed, arguments.workers)
        else:
            write_attributes(folder, splits, sizes, arguments.seed)
        skipping.write(folder)
    print(f"{arguments.kind}: {describe_sizes(sizes)}; annotations written to {arguments.output_dir}")


if __name__ == "__main__":
    main()
