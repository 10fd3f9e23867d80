"""Files that torch.save wrote: tensors and plain values are read, and nothing else is unpickled."""

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.io.records import RecordError

if TYPE_CHECKING:
    import numpy as np
    import torch

TORCH_SUFFIXES = (".pt", ".pth")


def read_torch_file(path: Path) -> Any:
    """What the file holds, on the CPU.

    Raises:
        RecordError: no such file, another format, or one that holds more than tensors and plain values.
    """
    import torch

    if not path.is_file():
        raise RecordError([f"{path}: no such file"])
    if not zipfile.is_zipfile(path):
        raise RecordError([f"{path}: not a file that torch.save wrote"])
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecordError([f"{path}: not a checkpoint of tensors and plain values alone: {reason}"]) from error


def read_vectors(path: Path) -> tuple[list[int | str], "np.ndarray"]:
    """Ids and float32 vectors (N, d) of a file with one tensor (N, d), whose ids are the row numbers, or with a
    dictionary of ids and vectors (d,).

    Raises:
        RecordError: names the file, what it holds and what was expected.
    """
    import torch

    content = read_torch_file(path)
    if isinstance(content, dict):
        _check_dictionary(path, content)
        return list(content), torch.stack([_floats(path, repr(key), content[key], 1) for key in content]).numpy()
    if not isinstance(content, torch.Tensor):
        expected = "a tensor (N, d), or a dictionary of ids and vectors (d,)"
        raise RecordError([f"{path}: expected {expected}, found {type(content).__name__}"])
    values = _floats(path, "the tensor", content, 2)
    return list(range(len(values))), values.numpy()


def _check_dictionary(path: Path, content: dict) -> None:
    """Raises a `RecordError` unless these are ids and vectors of one width."""
    import torch

    if not content:
        raise RecordError([f"{path}: expected at least one vector, found an empty dictionary"])
    for key, value in content.items():
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise RecordError([f"{path}: expected whole numbers or texts as ids, found {key!r:.80}"])
        if not isinstance(value, torch.Tensor):
            raise RecordError([f"{path}: {key!r}: expected a vector (d,), found {type(value).__name__}"])
    first = next(iter(content))
    for key, value in content.items():
        if value.shape != content[first].shape:
            shapes = f"{tuple(content[first].shape)} as {first!r} has, found {tuple(value.shape)}"
            raise RecordError([f"{path}: {key!r}: expected the shape {shapes}"])


def _floats(path: Path, name: str, tensor: "torch.Tensor", dimensions: int) -> "torch.Tensor":
    """The tensor as float32 of its own.

    Raises:
        RecordError: other dimensions, an empty one, whole numbers, or a shape that the file does not fill: a view
            that repeats a few numbers could be larger than the memory.
    """
    import torch

    shape = tuple(tensor.shape)
    if len(shape) != dimensions or 0 in shape:
        expected = "(N, d)" if dimensions == 2 else "(d,)"
        raise RecordError([f"{path}: {name}: expected the shape {expected} and no empty one, found {shape}"])
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        found = f"{tensor.dtype}" if tensor.layout == torch.strided else f"{tensor.layout}"
        raise RecordError([f"{path}: {name}: expected floating-point numbers, all of them stored, found {found}"])
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > stored:
        raise RecordError([f"{path}: {name}: expected {tensor.numel()} numbers for the shape {shape}, found {stored}"])
    return tensor.detach().float()
