"""Files of answers, a line each, that several processes and runs share and no kill harms.

Every process appends to a file of its own. One that is killed leaves at most an incomplete line, which readers pass
over and the next one that opens the file cuts off.
"""

import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data.io.records import RecordError


def open_own_file(folder: Path, stem: str, first: int = 0, step: int = 1) -> BinaryIO:
    """A file that no other process writes, also not one of another run, cut to its complete lines.

    The first that is free of those with the numbers `first`, `first + step`, ...: a run that is started again finds
    its own.
    """
    for number in itertools.count(first, step):
        file = (folder / f"{stem}-{number}.jsonl").open("ab+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            file.close()
            continue
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        return file
    raise AssertionError("numbers do not end")


def stored_lines(path: Path, *names: str, start: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset in bytes, content) of whole lines. A last one without its end belongs to a process that may still write.

    Args:
        names: of what every line has; the first is that of a text.
        start: offset and number of the first line that is read.

    Raises:
        RecordError: a line that is not JSON, or something else than answers.
    """
    offset, first = start
    with path.open("rb") as lines:
        lines.seek(offset)
        for number, line in enumerate(lines, start=first):
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RecordError([f"{path}:{number}: not a line of stored answers: {error}"]) from error
            is_text = isinstance(content, dict) and all(isinstance(content.get(name), str) for name in names[:1])
            if not (is_text and {*names} <= content.keys()):
                found = f"expected an object with {' and '.join(names)}, found {str(content)[:80]!r}"
                raise RecordError([f"{path}:{number}: not a line of stored answers: {found}"])
            yield offset, content
            offset += len(line)


def append_line(file: BinaryIO, content: Any) -> None:
    """Stores a line for good."""
    file.write((json.dumps(content, ensure_ascii=False) + "\n").encode())
    file.flush()
    os.fsync(file.fileno())


class AnswerCache:
    """Answers by the key of what was asked, in a folder that any number of runs share.

    Args:
        folder: made if it is not there; without one, answers are forgotten at the end.

    Answers stay on disk and are read when they are looked up, so that long ones take no memory.
    """

    def __init__(self, folder: str | Path | None = None):
        self._places: dict[str, tuple[Path, int]] = {}
        self._sizes: dict[Path, int] = {}
        self._last: dict[Path, tuple[int, int]] = {}  # offset and number of the last line that was read
        self._in_memory: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open_own_file(self.folder, "served")
        self._read_on(self.folder)

    def _read_on(self, folder: Path) -> None:
        """Learns where the answers are that other runs have kept since it was called last."""
        for path in sorted(folder.glob("served-*.jsonl")):
            size = path.stat().st_size
            if size == self._sizes.get(path):
                continue
            self._sizes[path] = size
            start = self._last.get(path, (0, 1))
            for number, (offset, line) in enumerate(stored_lines(path, "key", "answer", start=start), start[1]):
                self._places[line["key"]] = path, offset
                self._last[path] = offset, number

    def get(self, key: str) -> Any | None:
        """What was kept under a key, also by a run that is under way beside this one, or `None`."""
        if key not in self._places and self.folder is not None:
            self._read_on(self.folder)
        if key not in self._places:
            return self._in_memory.get(key)
        path, offset = self._places[key]
        with path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())["answer"]

    def keep(self, key: str, answer: Any) -> None:
        """Keeps an answer, of plain JSON values, for good."""
        if self._file is None:
            self._in_memory[key] = answer
            return
        offset = self._file.seek(0, os.SEEK_END)
        append_line(self._file, {"key": key, "answer": answer})
        path = Path(self._file.name)
        self._places[key] = path, offset
        self._sizes[path] = self._file.tell()
