"""What `auto`, `true` and `false` mean of a faster way that is not always exact."""

import warnings
from typing import Any

MODES = ("auto", "true", "false")


def parse_mode(value: Any, name: str = "shared_prefix") -> str:
    """`auto`, `true` or `false`, also as YAML's truth values.

    Args:
        name: of the setting, for the error.

    Raises:
        ValueError: anything else.
    """
    mode = str(value).lower()
    if mode not in MODES:
        raise ValueError(f"{name}: expected one of {', '.join(MODES)}, found {value!r}")
    return mode


class WhereExact:
    """The faster way where it is exact. Elsewhere "auto" goes the plain way, and says so once; "true" raises.

    Args:
        mode: one of `MODES`.
        error: what "true" raises.
        required: what must be and cannot, said with "true"; instead: what is done, said with "auto".
    """

    def __init__(self, mode: str, error: type[Exception], required: str, instead: str):
        self.mode, self.error, self.required, self.instead = mode, error, required, instead
        self._warned: set[str] = set()

    def allowed(self, reason: str | None) -> bool:
        """Whether there is nothing against the faster way.

        Args:
            reason: why it is not exact, if it is not.

        Raises:
            Exception: of the type `error`.
        """
        if reason is None:
            return True
        if self.mode == "true":
            raise self.error(f"{self.required}: {reason}")
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"{self.instead}: {reason}", stacklevel=4)
        return False
