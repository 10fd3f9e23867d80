"""A pool: the data set that a report describes and that filtering agents run on.

On disk it is a folder that a person can open, or write by hand:

    items.jsonl     one item a line: {"id", "image", "question"?, "answers"?}; image paths relative to the folder
    images/         the pictures

`ids` are integers or strings; their order is the data set's own (of two copies, the later one is the copy).
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pydantic import ConfigDict, StrictInt, StrictStr

from data.io.records import Record, RecordError, check_finished, parse_rows, read_rows, write_jsonl
from data.io.unreadable import LeftOut, readable_rows

ITEMS_FILE = "items.jsonl"

ItemId = StrictInt | StrictStr


class Item(Record):
    """One image of a pool, with the question asked about it and the answers that annotators gave, if any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: ItemId
    image: StrictStr
    question: StrictStr = ""
    answers: tuple[StrictStr, ...] = ()


class Pool:
    """The items of one folder, in their order.

    Args:
        folder: where `items.jsonl` stands.
        items: the items, when they have already been read.

    Raises:
        RecordError: a malformed line, a duplicate id, or no items.
    """

    def __init__(self, folder: str | Path, items: list[Item] | None = None):
        self.folder = Path(folder)
        path = self.folder / ITEMS_FILE
        if items is None:
            check_finished(self.folder)
        self.items = items if items is not None else parse_rows(read_rows(path), Item)
        if not self.items:
            raise RecordError([f"{path}: expected at least one item, found none"])
        seen = set()
        for item in self.items:
            if item.id in seen:
                raise RecordError([f"{path}: field 'id': duplicate {item.id!r}"])
            seen.add(item.id)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> list[int | str]:
        return [item.id for item in self.items]

    def image_path(self, item: Item) -> Path:
        return self.folder / item.image

    def save_items(self) -> None:
        write_jsonl(self.folder / ITEMS_FILE, (item.model_dump() for item in self.items))


@lru_cache(maxsize=4096)
def load_pool(folder: str) -> Pool:
    """A pool read once a process: rewards ask for the same one again for every completion of a group."""
    return Pool(folder)


def images_of_pools(pools: Iterable[Pool]) -> list[tuple[str, str]]:
    """(where it is used, path) of every image of some pools, for `data.io.unreadable.refuse_unreadable`."""
    return [(f"{pool.folder}: item {item.id!r}", str(pool.image_path(item))) for pool in pools for item in pool.items]


def readable_pool(folder: str, left_out: LeftOut | None, place: Path) -> str:
    """The folder of a pool whose images can all be read: the given one, or one at `place` with its other items.

    Args:
        left_out: notes the items that are left out.
        place: a folder that does not exist.

    Raises:
        RecordError: no image can be read.
    """
    pool = load_pool(folder)
    where = [found for found, _ in images_of_pools([pool])]
    kept = readable_rows(pool.items, where, (), left_out, lambda item: [str(pool.image_path(item))], "image")
    if len(kept) == len(pool):
        return folder
    place.mkdir(parents=True)
    items = [item.model_copy(update={"image": str(pool.image_path(item).resolve())}) for item in kept]
    Pool(place, items).save_items()
    return str(place)
