"""A table of embeddings: one row of numbers for each id, in one safetensors file.

The file holds the tensor `values` and, as JSON in its metadata, the ids (integers stay integers) and the parts that a
row is made of: the image's numbers first, then the text's. Tables of earlier systems, which torch.save wrote, are read
too.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from data.candidates.torch_files import TORCH_SUFFIXES, read_vectors
from data.io.records import RecordError
from data.reports.pool import ItemId

TABLE_FILE = "embeddings.safetensors"
"""What a table is called that is saved to a folder."""


class Part(BaseModel):
    """Columns of a table that one encoder made.

    Attributes:
        name: `image` or `text`.
        width: number of columns.
        encoder: fingerprint of the encoder's weights and settings; two tables are comparable where it is equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width: int
    encoder: str


_IDS = TypeAdapter(list[ItemId])
_PARTS = TypeAdapter(list[Part])


def save_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a safetensors file that is never seen half-written."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        save_file(tensors, name, metadata)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_tensors(path: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        RecordError: no such file, not a safetensors file, or one of the tensors is missing.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise RecordError([f"{path}: no such file"])
    try:
        with safe_open(path, framework="np") as file:
            missing = sorted(set(names) - set(file.keys()))
            if missing:
                raise RecordError(
                    [f"{path}: expected the tensors {', '.join(names)}; {', '.join(missing)} is missing"]
                )
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise RecordError([f"{path}: not readable as safetensors: {error}"]) from error


@dataclass
class EmbeddingTable:
    """Embeddings by id.

    Args:
        ids: of the rows; integers or texts, each once.
        values: float32 (N, d).
        parts: what the columns are, if known; widths add up to d.

    Raises:
        RecordError: a duplicate id, another number of rows than ids, parts of another width, or values that
            are not finite.

    >>> table = EmbeddingTable([7, "b"], np.array([[1, 0], [0, 1]], dtype=np.float32))
    >>> table.rows(["b", 7]).tolist()
    [1, 0]
    """

    ids: list[int | str]
    values: np.ndarray
    parts: tuple[Part, ...] = ()

    def __post_init__(self):
        self.values = np.ascontiguousarray(self.values, dtype=np.float32)
        if self.values.ndim != 2 or len(self.values) != len(self.ids):
            raise RecordError(
                [f"embeddings: expected one row for each of {len(self.ids)} ids, found {self.values.shape}"]
            )
        if self.parts and sum(part.width for part in self.parts) != self.width:
            raise RecordError([f"embeddings: expected parts of {self.width} columns in all, found {list(self.parts)}"])
        self._row = {item_id: row for row, item_id in enumerate(self.ids)}
        if len(self._row) != len(self.ids):
            twice = next(item_id for row, item_id in enumerate(self.ids) if self._row[item_id] != row)
            raise RecordError([f"embeddings: duplicate id {twice!r}"])
        finite = np.isfinite(self.values).all(axis=1)
        if not finite.all():
            raise RecordError([f"embeddings: id {self.ids[int(np.argmin(finite))]!r}: values that are not finite"])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def rows(self, ids: Iterable[int | str]) -> np.ndarray:
        """Row numbers (int64) of these ids.

        Raises:
            RecordError: names the ids that the table lacks.
        """
        ids = list(ids)
        missing = [item_id for item_id in ids if item_id not in self._row]
        if missing:
            raise RecordError(
                [f"embeddings: id {item_id!r} is not in the table" for item_id in dict.fromkeys(missing)]
            )
        return np.fromiter((self._row[item_id] for item_id in ids), dtype=np.int64, count=len(ids))

    def part(self, name: str) -> np.ndarray:
        """The columns (N, width) of one part.

        Raises:
            RecordError: the table has no such part.
        """
        start = 0
        for part in self.parts:
            if part.name == name:
                return self.values[:, start : start + part.width]
            start += part.width
        known = ", ".join(part.name for part in self.parts) or "none"
        raise RecordError([f"embeddings: no part '{name}' in the table; its parts: {known}"])

    def check_same_encoders(self, other: "EmbeddingTable") -> None:
        """Raises a `RecordError` unless the columns of both tables mean the same."""
        if self.width != other.width or self.parts != other.parts:
            found = [list(table.parts) or f"{table.width} columns" for table in (self, other)]
            raise RecordError([f"embeddings: two tables made by different encoders: {found[0]} and {found[1]}"])

    def check_encoders(self, expected: dict[str, str]) -> None:
        """Raises a `RecordError` unless encoders with these fingerprints made the columns.

        Args:
            expected: part -> fingerprint, in the order of the parts.
        """
        found = {part.name: part.encoder for part in self.parts}
        if list(found.items()) != list(expected.items()):
            shown = [
                ", ".join(f"{name} {fingerprint[:12]}" for name, fingerprint in parts.items()) or "unknown ones"
                for parts in (expected, found)
            ]
            raise RecordError([f"embeddings: expected those of the encoders {shown[0]}, found {shown[1]}"])

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file, atomically: `path` itself if it ends so, otherwise one in that folder."""
        path = written_table_path(path)
        parts = [part.model_dump() for part in self.parts]
        save_tensors(path, {"values": self.values}, {"ids": json.dumps(self.ids), "parts": json.dumps(parts)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "EmbeddingTable":
        """Reads what `save` wrote, or what torch.save did (`data.candidates.torch_files.read_vectors`).

        Raises:
            RecordError: names the file and what is wrong with it.
        """
        path = table_path(path)
        if path.suffix in TORCH_SUFFIXES:
            ids, values = read_vectors(path)
            return cls._of_file(path, ids, values, ())
        tensors, metadata = load_tensors(path, ["values"])
        if tensors["values"].dtype != np.float32:
            raise RecordError([f"{path}: tensor 'values': expected float32, found {tensors['values'].dtype}"])
        try:
            ids = _IDS.validate_json(metadata.get("ids", ""))
            parts = tuple(_PARTS.validate_json(metadata.get("parts", "[]")))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise RecordError([f"{path}: metadata: expected the ids and parts as JSON: {first['msg']}"]) from error
        return cls._of_file(path, ids, tensors["values"], parts)

    @classmethod
    def _of_file(
        cls, path: Path, ids: list[int | str], values: np.ndarray, parts: tuple[Part, ...]
    ) -> "EmbeddingTable":
        try:
            return cls(ids, values, parts)
        except RecordError as error:
            raise error.at(str(path)) from error


def table_path(path: str | Path) -> Path:
    """The file of a table that is named by its file or its folder."""
    path = Path(path)
    return path if path.suffix in (".safetensors", *TORCH_SUFFIXES) else path / TABLE_FILE


def written_table_path(path: str | Path) -> Path:
    """The same, of a table that is to be written.

    Raises:
        RecordError: a name of torch.save's files.
    """
    path = table_path(path)
    if path.suffix in TORCH_SUFFIXES:
        raise RecordError([f"{path}: tables are written as .safetensors; expected a name that ends so, or a folder"])
    return path
