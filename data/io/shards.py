"""Results of long work, kept row by row, by several processes, so that killing them loses nothing.

    with ShardStore(work_folder("outputs/beams.jsonl"), settings) as store:
        store.fill("outputs/beams.jsonl", ids, rows_of, size=8, unit="query")

Every process appends to a file of its own, a row a line, each forced to disk before the next. A process that is killed
leaves at most one incomplete line, which the next start cuts off. `settings.json` beside the files says what the rows
were made with; other settings are refused, because their rows must not mix.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from data.cli.arguments import option
from data.cli.locks import locked
from data.cli.secrets import without_secrets
from data.errors import UserError
from data.io.records import RecordError, atomic_write, write_json

SETTINGS_FILE = "settings.json"
LONGEST_SHOWN = 60
"""Characters of a setting in a message."""
_LONGEST_WAIT = timedelta(days=30)
"""For the slowest process, at the end; by default the others would give up within half an hour."""


def work_folder(output: str | Path) -> Path:
    """Where unfinished work of a file is kept, unless a command is told otherwise: beside it.

    >>> work_folder("outputs/beams.jsonl").name
    'beams.jsonl.parts'
    """
    output = Path(output)
    return output.with_name(f"{output.name}.parts")


@dataclass(kw_only=True)
class RestartArguments:
    """What becomes of unfinished work."""

    restart: bool = option("discard unfinished work, as of other settings", False)


@dataclass(kw_only=True)
class KeptWorkArguments(RestartArguments):
    """Where unfinished work is."""

    work_dir: Path | None = option("folder for what is made until all is there; by default beside the output", None)

    def work(self, output: Path) -> Path:
        """The folder for the store of the rows of a file."""
        return self.work_dir or work_folder(output)


def process_state():
    """This process's place among those of an `accelerate launch`, or that of a single process."""
    import torch
    from accelerate import PartialState

    # Without `cpu`, processes on a machine without accelerators would not find each other.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)


def end_processes() -> None:
    """Takes leave of the other processes, at the end of a program: one that just ends may abort while they listen."""
    state = process_state()
    state.wait_for_everyone()
    state.destroy_process_group()


class ShardStore:
    """Rows of all processes in one folder; a context manager.

    Args:
        folder: made if it is not there.
        settings: JSON values that decide what the rows look like.
        restart: discard what rows and settings are there, and begin anew.
        sync_every: rows after which they are forced to disk. With more than 1, a power failure may cost the last few
            (a killed process costs none), and they are then made again.

    All processes must enter together, with the same arguments.

    Raises:
        RecordError: a folder with other settings, one that another run is writing to, or a malformed row in it.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any],
        sync_every: int = 1,
        restart: bool = False,
    ):
        self.folder = Path(folder)
        self.settings = settings
        self.sync_every = sync_every
        self.restart = restart
        self.done: set[int | str] = set()
        self._state = None
        self._file = None
        self._lock = ExitStack()
        self._unsynced = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that merges and shows progress."""
        return self._state.is_main_process

    def __enter__(self) -> "ShardStore":
        self._state = process_state()
        self._check_alike()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.restart:
            self._together(self._discard)
        self._together(self._open_own, on_all=True)
        self._together(self._check_stored)
        for path in self._paths():
            self.done.update(row_id for row_id, _ in self._rows(path))
        self._state.wait_for_everyone()  # nobody appends while another still reads
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            self._sync()
            self._file.close()
            self._file = None
        self._lock.close()

    def _together(self, work: Callable[[], None], on_all: bool = False) -> None:
        """Does something, in the main process or in all, while the others wait; all stop if it cannot be done."""
        from accelerate.utils import gather_object

        problem = None
        if self.is_main or on_all:
            try:
                work()
            except UserError as error:
                problem = error
        for found in gather_object([problem]):
            if found is not None:
                self.__exit__()
                raise found

    def _check_stored(self) -> None:
        for path in self._paths():
            cut_incomplete_line(path)
        self._check_settings()

    def _discard(self) -> None:
        paths = self._paths()
        with ExitStack() as all_of_them:
            for path in paths:
                all_of_them.enter_context(locked(path))
            for path in (*paths, self.folder / SETTINGS_FILE):
                path.unlink(missing_ok=True)

    def _open_own(self) -> None:
        path = self.folder / f"shard-{self._state.process_index:05d}.jsonl"
        self._lock.enter_context(locked(path))
        self._file = path.open("ab")

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS_FILE
        wanted = without_secrets(json.loads(json.dumps(self.settings)))
        if not any(shard.stat().st_size for shard in self._paths()):  # a start that made no row binds nobody
            write_json(path, wanted)
            return
        if not path.is_file():
            raise RecordError([f"{self.folder}: has rows but no {SETTINGS_FILE}; choose another folder"])
        try:
            stored = json.loads(path.read_bytes())
        except ValueError as error:
            raise RecordError([f"{path}: not valid JSON: {error}"]) from error
        problems = [f"{path}: {difference}" for difference in _differences(stored, wanted)]
        if problems:
            way_on = "use the same settings or another folder, or discard the rows there with --restart"
            raise RecordError([*problems[:-1], f"{problems[-1]}; {way_on}"])

    def _check_alike(self) -> None:
        """Raises a `RecordError` on every process where they disagree on the settings: their rows must not mix.

        A picture that only one of them can read would be in some of the rows.
        """
        from accelerate.utils import gather_object

        first, *others = gather_object([json.dumps(self.settings)])
        for number, found in enumerate(others, start=1):
            if found != first:
                differing = _differing_keys(json.loads(first), json.loads(found))
                raise RecordError([f"{self.folder}: processes 0 and {number} differ in {', '.join(differing)}"])

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.jsonl"))

    def _rows(self, path: Path) -> Iterator[tuple[int | str, bytes]]:
        """(id, line) of the complete rows of a file."""
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row_id = json.loads(line)["id"]
                except (ValueError, TypeError, KeyError) as error:
                    found = line[:80].decode("utf-8", errors="replace")
                    raise RecordError([f"{path}:{number}: expected an object with 'id', found {found!r}"]) from error
                yield row_id, line

    def fill(
        self,
        output: str | Path,
        ids: Sequence[Any],
        rows_of: Callable[[list[Any]], Iterable[dict[str, Any]]],
        size: int = 1,
        unit: str = "row",
    ) -> None:
        """Makes the rows that are not there yet, keeps each at once, and merges all in the order of `ids`.

        Args:
            output: see `merge`.
            rows_of: gives a row for each id of a chunk. It is also asked for rows of the chunk that are there.
            size: ids of a chunk.
            unit: what a row is made of, for the progress bar.
        """
        from tqdm import tqdm

        chunks = self.chunks(ids, size)
        with tqdm(total=sum(map(len, chunks)), desc=Path(output).stem, unit=unit, disable=not self.is_main) as bar:
            for chunk in chunks:
                for row in rows_of(chunk):
                    if row["id"] not in self.done:
                        self.append(row)
                bar.update(len(chunk))
        self.merge(output, order=ids)

    def chunks(self, ids: Sequence[int | str], size: int = 1) -> list[list[int | str]]:
        """This process's share of the work: parts of `ids` of which at least one has no row yet.

        Part i goes to process i modulo the number of processes, so that all ids are somebody's. A part is always
        whole, also where some of its rows are there: what is computed together can then be computed together again,
        to the last bit.
        """
        parts = [list(ids[start : start + size]) for start in range(0, len(ids), size)]
        own = parts[self._state.process_index :: self._state.num_processes]
        return [part for part in own if not self.done.issuperset(part)]

    def append(self, row: dict[str, Any]) -> None:
        """Keeps a row for good.

        Raises:
            ValueError: a row that is there already, or with NaN or infinity.
        """
        row_id = row["id"]
        if row_id in self.done:
            raise ValueError(f"row {row_id!r} is there already")
        self._file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        self._file.flush()
        self.done.add(row_id)
        self._unsynced += 1
        if self._unsynced >= self.sync_every:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def merge(self, output: str | Path, order: Iterable[int | str]) -> None:
        """Writes the rows of all processes to one file, in the order of `order`, atomically.

        Waits for all processes; the main one writes. The shards stay.

        Raises:
            RecordError: on every process, if an id of `order` has no row.
        """
        self._sync()
        self._state.wait_for_everyone()
        self._together(lambda: self._write_merged(Path(output), list(order)))

    def _write_merged(self, output: Path, order: list[int | str]) -> None:
        lines = {row_id: line for path in self._paths() for row_id, line in self._rows(path)}
        missing = [row_id for row_id in order if row_id not in lines]
        if missing:
            shown = ", ".join(map(repr, missing[:5]))
            raise RecordError([f"{self.folder}: {len(missing)} of {len(order)} rows are missing: {shown}"])
        with atomic_write(output, "wb") as file:
            file.writelines(lines[row_id] for row_id in order)


def cut_incomplete_line(path: Path) -> None:
    """Removes what a killed process left after its last line break."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65_536)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                end = start + last + 1
                break
            end = start
        file.truncate(end)


def _shown(value: Any) -> str:
    """A setting as a person can read it: of a long text the beginning."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}.."


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value) is not None


def _differing_keys(one: dict, other: dict) -> list[str]:
    return [f"'{key}'" for key in dict.fromkeys((*one, *other)) if one.get(key) != other.get(key)]


def _differences(stored: Any, wanted: Any, field: str = "") -> list[str]:
    """A sentence for each setting that differs, those inside others by their dotted names."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in dict.fromkeys((*stored, *wanted))
            for difference in _differences(stored.get(key), wanted.get(key), f"{field}.{key}" if field else key)
        ]
    if stored == wanted:
        return []
    if _is_fingerprint(stored) and _is_fingerprint(wanted):
        content = f"other content, by its fingerprint {stored[:8]}, now it is {wanted[:8]}"
        return [f"field '{field}': the rows there were made with {content}"]
    return [f"field '{field}': the rows there were made with {_shown(stored)}, now it is {_shown(wanted)}"]
