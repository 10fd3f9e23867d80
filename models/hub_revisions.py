"""Which state of the Hub everything of a model is read from: its revision, and for adapters also that of their base.

`hub` is always a mapping of `revision` (branch, tag or commit; `None` for the main branch) and `trust_remote_code`,
arguments of transformers' `from_pretrained`. Folders have no revisions: theirs are ignored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import ModelError

HUB_KEYS = ("revision", "trust_remote_code")


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s options that say which files of a Hub repository are read."""
    return {key: options[key] for key in HUB_KEYS if key in options}


@dataclass(frozen=True)
class AdapterBase:
    """The model that adapters were trained on, as they say themselves.

    Attributes:
        revision: `None` where the adapters name none.
    """

    name: str
    revision: str | None


def adapter_base(name: str | Path, revision: str | None = None) -> AdapterBase | None:
    """The base of the adapters in a folder or Hub id; `None` if there are no adapters, or no such place.

    Args:
        revision: of the adapters' own repository.

    Raises:
        ValueError: the adapters do not name a base.
    """
    from transformers.utils import find_adapter_config_file

    try:
        path = find_adapter_config_file(str(name), revision=revision)
    except OSError:  # loading the model itself says what is wrong
        return None
    if path is None:
        return None
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(config.get("base_model_name_or_path"), str):
        raise ModelError(f"{path}: field 'base_model_name_or_path': expected the name of a model, found none")
    return AdapterBase(config["base_model_name_or_path"], config.get("revision"))


def find_file(name: str | Path, file: str, revision: str | None = None) -> str | None:
    """Path of a file in a folder or Hub id, or `None` if it is not there or the Hub is out of reach."""
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(name, file, revision=revision, **quiet)


def model_class(name: str, hub: Mapping[str, Any]) -> type:
    """The class that a model's configuration names, which another revision may name otherwise.

    Raises:
        OSError: no such folder, Hub id or revision.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(name, **hub)
    named = getattr(transformers, (config.architectures or [""])[0], None)
    of_own_code = getattr(config, "auto_map", None) or {}
    general = [auto for auto in ("AutoModelForImageTextToText", "AutoModelForCausalLM") if auto in of_own_code]
    return named or getattr(transformers, (general or ["AutoModelForCausalLM"])[0])
