"""A pool: the data set that a report describes and that filtering agents run on.

On disk it is a folder that a person can open, or write by hand:

    items.jsonl     one item a line: {"id", "image", "question"?, "answers"?}; image paths relative to the folder
    images/         the pictures

`ids` are integers or strings; their order is the data set's own (of two copies, the later one is the copy).
"""

from functools import lru_cache
from pathlib import Path

from pydantic import ConfigDict, StrictInt, StrictStr

from data.records import Record, RecordError, check_finished, parse_rows, read_rows, write_jsonl

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
        RecordError: a malformed line, an id that stands twice, or no items.
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
                raise RecordError([f"{path}: field 'id': {item.id!r} stands twice"])
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
