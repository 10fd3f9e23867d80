"""A small pool made by hand, in which every item has one known flaw or none."""

from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageFilter
from skimage import data as photographs

from data.reports.pool import Item, Pool

IDS = ["plain", "blurred", "dark", "white", "tiny", "coarse", "wide", "copy", "alike", "short", "long", "disputed"]


def _in_grey_bars(photo: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (300, 96), (128, 128, 128))
    canvas.paste(photo, (100, 0))
    return canvas


@pytest.fixture(scope="session")
def flawed_pool(tmp_path_factory) -> Path:
    """Twelve items with ids `IDS`; each but the first stands for the flaw in its name.

    Effective sides: 96, but 30 for `tiny` and 24 for `coarse`. Aspect 3.125 for `wide`. Words of the question: 4, but
    2 for `short` and 45 for `long`. Agreement: 1, but 0.5 for `disputed`.
    """
    folder = tmp_path_factory.mktemp("flawed")
    astronaut = Image.fromarray(photographs.astronaut())

    def crop(number: int) -> Image.Image:
        left, top = (130, 20) if number == 0 else (60 + 30 * (number % 6), 30 + 30 * (number // 6))
        return astronaut.crop((left, top, left + 192, top + 192)).resize((96, 96), Image.Resampling.LANCZOS)

    small = crop(5).resize((24, 24), Image.Resampling.BOX)
    pictures = {
        "plain": crop(0),
        "blurred": crop(1).filter(ImageFilter.GaussianBlur(3)),
        "dark": ImageEnhance.Brightness(crop(2)).enhance(0.1),
        "white": crop(3).point(lambda value: min(255, 12 * value + 60)),
        "tiny": crop(4).resize((30, 30), Image.Resampling.LANCZOS),
        "coarse": small.resize((96, 96), Image.Resampling.NEAREST),
        "wide": _in_grey_bars(crop(6)),
        "copy": crop(0),
        "alike": ImageEnhance.Brightness(crop(0)).enhance(0.96),
        "short": crop(9),
        "long": crop(10),
        "disputed": crop(11),
    }
    texts = {"short": "Who, then?", "long": " ".join(["word"] * 45)}
    answers = {"disputed": ("a woman", "a woman", "a man", "a flag")}
    items = []
    for item_id in IDS:
        pictures[item_id].save(folder / f"{item_id}.png")
        question, own = texts.get(item_id, "Who is that person?"), answers.get(item_id, ("a woman",))
        items.append(Item(id=item_id, image=f"{item_id}.png", question=question, answers=own))
    Pool(folder, items).save_items()
    return folder


@pytest.fixture
def all_but():
    """Function: ids -> the other ids of the flawed pool, in its order."""

    def rest(*dropped: str) -> list[str]:
        assert set(dropped) <= set(IDS)
        return [item_id for item_id in IDS if item_id not in dropped]

    return rest


@pytest.fixture
def make_pool_of(tmp_path, flawed_pool):
    """Function: ids -> folder of a pool in which all items are the plain one."""

    def make(ids: list, name: str = "pool") -> Path:
        path = str(flawed_pool / "plain.png")
        items = [Item(id=item_id, image=path, question="Who is that person?", answers=("she",)) for item_id in ids]
        (tmp_path / name).mkdir()
        Pool(tmp_path / name, items).save_items()
        return tmp_path / name

    return make
