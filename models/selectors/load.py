"""Selectors of every kind, loaded from a folder or the Hub with exactly the weights that their configuration names."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, AutoModel

from models.errors import ModelError
from models.model_paths import loading
from models.selectors.base import Selector
from models.selectors.encoding import EncodingSelector, EncodingSelectorConfig
from models.selectors.gpt2 import GPT2SelectorConfig
from models.selectors.pointer import PointerSelectorConfig

MODEL_TYPES = tuple(one.model_type for one in (PointerSelectorConfig, GPT2SelectorConfig, EncodingSelectorConfig))


def load_selector(path: str | Path, revision: str | None = None) -> Selector:
    """The selector stored in a folder by `save_pretrained` (or of a Hub id), in eval mode: either class.

    Of an `EncodingSelector` it is the selector inside, which reads the embeddings that the trained encoders make
    (`models.selectors.encoders`).

    Raises:
        ValueError: it is no selector, or its weights are not exactly those of its configuration.
    """
    model = load_exactly(path, MODEL_TYPES, revision)
    return model.selector if isinstance(model, EncodingSelector) else model


def load_encoding_selector(path: str | Path, revision: str | None = None) -> EncodingSelector:
    """The model stored in a folder by `save_pretrained` (or of a Hub id), in eval mode.

    Args:
        revision: branch, tag or commit of a Hub repository.

    Raises:
        ValueError: it is no such model, or its weights are not exactly those of its configuration; lists them.
    """
    return load_exactly(path, (EncodingSelectorConfig.model_type,), revision)


def has_encoders(path: str | Path) -> bool:
    """Whether the selector of a folder or Hub id is an `EncodingSelector`."""
    with loading(path):
        return AutoConfig.from_pretrained(path).model_type == EncodingSelectorConfig.model_type


def load_exactly(path: str | Path, model_types: Sequence[str], revision: str | None = None):
    """A model of one of these types, in eval mode.

    Raises:
        ValueError: another type, or weights that are missing, unexpected or of another shape; lists all of them.
    """
    config = AutoConfig.from_pretrained(path, revision=revision)
    if config.model_type not in model_types:
        expected = " or ".join(model_types)
        raise ModelError(f"{path}: config.json: model_type: expected {expected}, found {config.model_type}")
    model, found = AutoModel.from_pretrained(
        path, output_loading_info=True, ignore_mismatched_sizes=True, revision=revision
    )
    wrong = [f"{what.removesuffix('_keys')}: {sorted(map(str, found[what]))}" for what in found if found[what]]
    if wrong:
        raise ModelError(f"{path}: weights do not fit config.json: {'; '.join(wrong)}")
    return model.eval()
