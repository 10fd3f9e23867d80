"""What tests of data share: real pictures, writing lines, and hand-made pools."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from skimage import data as photographs

from data.reports.pool import Item, Pool


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A sharp photograph of 96x96 pixels."""
    return Image.fromarray(photographs.astronaut()).resize((96, 96), Image.Resampling.LANCZOS)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Folder of 48 different crops of two photographs, 96x96 pixels each."""
    folder = tmp_path_factory.mktemp("crops")
    for name in ("astronaut", "coffee"):
        picture = Image.fromarray(getattr(photographs, name)()).resize((512, 400), Image.Resampling.LANCZOS)
        for number in range(24):
            left, top = 70 * (number % 6), 95 * (number // 6)
            picture.crop((left, top, left + 96, top + 96)).save(folder / f"{name}_{number:02d}.png")
    return folder


@pytest.fixture
def write_lines(tmp_path) -> Callable[..., Path]:
    """Function: file name and rows (objects, or bytes for lines that are no JSON) -> the JSONL file."""

    def write(name: str, *rows) -> Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write


@pytest.fixture
def make_pool(tmp_path) -> Callable[..., Pool]:
    """Function: pictures, and further fields of each item -> a pool on disk with ids 0, 1, 2..."""

    def make(pictures: list[Image.Image], fields: list[dict] | None = None, name: str = "pool") -> Pool:
        folder = tmp_path / name
        folder.mkdir()
        items = []
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{number}.png")
            items.append(Item(id=number, image=f"{number}.png", **(fields[number] if fields else {})))
        pool = Pool(folder, items)
        pool.save_items()
        return pool

    return make
