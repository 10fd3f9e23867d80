"""Image files below a folder, and finding them by the number that their names end in."""

from collections.abc import Iterable
from pathlib import Path

from data.io.images import IMAGE_ENDINGS


def image_files(folder: Path) -> list[Path]:
    """Every image below a folder, sorted. Hidden files and folders are left out: systems leave copies in them."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and "__MACOSX" not in path.parts
    ]


def files_by_number(paths: Iterable[Path]) -> dict[int, list[Path]]:
    """Files by the number at the end of their names: COCO_val2014_000000262148.jpg is 262148."""
    found: dict[int, list[Path]] = {}
    for path in paths:
        digits = path.stem.rpartition("_")[2]
        if digits.isascii() and digits.isdigit():
            found.setdefault(int(digits), []).append(path)
    return found
