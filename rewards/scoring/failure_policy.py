"""What happens when a reward fails, per reward: stop with a clear message, or go on without the row.

A guarded reward never raises while it is called: in distributed training the other processes would wait for a result
that never comes. It returns `None` for every row it could not score and keeps the failures, for the caller to collect
from all processes before any of them stops.
"""

import asyncio
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from rewards.scoring.own_copies import own_copy

ON_ERROR = ("raise", "skip")
LARGEST_REWARD = 1e18
WHY_NO_LARGER = "advantages are computed in float32, which cannot hold the variance of larger ones"


class RewardError(UserError, RuntimeError, ValueError):
    """A reward failed, or returned what is not a list of numbers; the message names reward, row and cause."""


@dataclass(frozen=True)
class Failure:
    """One row that a reward could not score.

    Attributes:
        row: its `id`, or its position in the batch.
        cause: type and text of the exception, or what was wrong with the returned value.
        details: the last lines of the traceback, or nothing.
        fatal: stops the run whatever `on_error` says: the reward is not one.
        rank: of the process that it happened on, where there are several.
    """

    reward: str
    row: str
    cause: str
    details: str = ""
    fatal: bool = False
    rank: int | None = None

    def describe(self) -> str:
        where = "" if self.rank is None else f" on rank {self.rank}"
        details = f"\n{self.details}" if self.details else ""
        return f"reward '{self.reward}' failed{where} at row {self.row}: {self.cause}{details}"


WHOLE_BATCH = "none in particular (the batch as a whole)"


def row_names(columns: dict[str, Any], length: int) -> list[str]:
    """How messages call each row: by its id, or by its position."""
    ids = columns.get("id")
    if not isinstance(ids, list) or len(ids) != length:
        ids = [None] * length
    return [f"{position} of the batch" if row is None else repr(row) for position, row in enumerate(ids)]


def some_rows(completions: list, columns: dict[str, Any], rows: Sequence[int]) -> tuple[list, dict[str, Any]]:
    """The arguments of a call for some rows; what is not a column (a list as long as the batch) goes along whole."""
    size = len(completions)
    own = {
        key: [value[row] for row in rows] if isinstance(value, list) and len(value) == size else value
        for key, value in columns.items()
    }
    return [completions[row] for row in rows], own


def _single_rows(completions: list, columns: dict[str, Any]) -> Iterator[tuple[list, dict[str, Any]]]:
    """The arguments of one call a row."""
    return (some_rows(completions, columns, [row]) for row in range(len(completions)))


def _as_float(value: Any) -> float | None:
    """The value as a float, or `None` if it is not a number (a text of one is none)."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except Exception:  # whatever the `__float__` of a user's object raises
        return None


class GuardedReward:
    """A reward function with its policy for failures.

    Args:
        function: `reward(completions, **columns)`.
        name: for logs and messages.
        on_error: "raise" stops at the first failing row; "skip" gives the row `None` and goes on.
        max_error_rate: with "skip", the share of rows, over the whole run, above which the run stops (`settle`).
    """

    def __init__(self, function: Callable, name: str, on_error: str = "raise", max_error_rate: float = 0.1):
        if on_error not in ON_ERROR:
            raise ValueError(f"reward '{name}': on_error: expected one of {', '.join(ON_ERROR)}, found {on_error!r}")
        if not isinstance(max_error_rate, int | float) or not 0 <= max_error_rate <= 1:
            raise ValueError(f"reward '{name}': max_error_rate: expected 0 to 1, found {max_error_rate!r}")
        self.function = function
        self.name = name
        self.on_error = on_error
        self.max_error_rate = max_error_rate
        self.failures: list[Failure] = []

    @property
    def __name__(self) -> str:
        return self.name

    def _call(self, completions: list, columns: dict[str, Any]) -> Any:
        """What the function returns for a copy of its own: no reward sees what another one changed in place."""
        made: dict[int, Any] = {}
        own = {name: own_copy(value, made) for name, value in columns.items()}
        return self.function(completions=own_copy(completions, made), **own)

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        self.failures = []
        if not completions:
            return []
        names = row_names(columns, len(completions))
        try:
            return self._checked(self._call(completions, columns), names)
        except Exception as error:
            return self._score_rows(completions, columns, names, error)

    def _score_rows(
        self, completions: list, columns: dict, names: list[str], batch_error: Exception
    ) -> list[float | None]:
        """Scores each row by itself, to find the ones that fail."""
        scores: list[float | None] = []
        for name, row in zip(names, _single_rows(completions, columns), strict=True):
            try:
                scores += self._checked(self._call(*row), [name])
            except Exception as error:
                self._add_failure(name, error)
                scores.append(None)
            if self.failures and self.on_error == "raise":
                break
        return self._settled(scores, names, batch_error)

    def _settled(self, scores: list[float | None], names: list[str], batch_error: Exception) -> list[float | None]:
        """The scores found row by row, if some rows failed and are to be skipped; none at all otherwise."""
        if self.failures and self.on_error == "skip":
            return scores
        if not self.failures:  # no row fails alone, so the reward looks at the batch as a whole
            for _ in names:
                self._add_failure(WHOLE_BATCH, batch_error)
        return [None] * len(names)

    def _add_failure(self, row: str, error: Exception) -> None:
        details = "".join(traceback.format_exception(error)[-3:]).rstrip()
        self.failures.append(Failure(self.name, row, f"{type(error).__name__}: {error}", details))

    def _refuse(self, row: str, cause: str) -> None:
        self.failures.append(Failure(self.name, row, cause, fatal=True))

    def _checked(self, values: Any, names: list[str], whole: str = WHOLE_BATCH) -> list[float | None]:
        """The values as floats; anything that is not a list of finite numbers or `None` becomes a fatal failure.

        Args:
            whole: how messages call all rows together.
        """
        try:
            iterator = None if isinstance(values, str | bytes | Mapping) else iter(values)
        except TypeError:
            iterator = None
        if iterator is None:
            self._refuse(whole, f"expected a list of {len(names)} numbers, found {type(values).__name__}")
            return [None] * len(names)
        values = list(iterator)
        if len(values) != len(names):
            self._refuse(whole, f"returned {len(values)} rewards, expected {len(names)}: one a completion")
            return [None] * len(names)
        return [self._checked_value(value, row) for value, row in zip(values, names, strict=True)]

    def _checked_value(self, value: Any, row: str) -> float | None:
        if value is None:
            return None
        score = _as_float(value)
        if score is None:
            self._refuse(row, f"expected a number or None, found {value!r:.80}")
            return None
        if not math.isfinite(score):
            self._refuse(row, f"expected a finite number, found {score}")
            return None
        if abs(score) > LARGEST_REWARD:
            self._refuse(row, f"expected a number between -1e18 and 1e18, found {score}: {WHY_NO_LARGER}")
            return None
        return score


class GuardedAsyncReward(GuardedReward):
    """The same for an `async def` reward: TRL runs those side by side."""

    async def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        self.failures = []
        if not completions:
            return []
        names = row_names(columns, len(completions))
        try:
            return self._checked(await self._call(completions, columns), names)
        except Exception as error:
            batch_error = error

        async def score_alone(name: str, row: tuple[list, dict]) -> list[float | None]:
            try:
                return self._checked(await self._call(*row), [name])
            except Exception as error:
                self._add_failure(name, error)
                return [None]

        rows = zip(names, _single_rows(completions, columns), strict=True)
        scores = await asyncio.gather(*(score_alone(name, row) for name, row in rows))
        return self._settled([score for [score] in scores], names, batch_error)


def settle(rewards: Iterable[GuardedReward], failures: Sequence[Failure], failed: Counter[str], rows: int) -> None:
    """Counts failures, and ends the run where the policy of their reward says so.

    Args:
        rewards: that may have failed.
        failures: new ones, of any of the rewards, from all processes.
        failed: rows that each reward, by its name, has failed for so far; the new ones are added.
        rows: scored so far.

    Raises:
        RewardError: a reward failed under `on_error: raise`, for more than `max_error_rate` of all rows, or returned
            what is not a list of finite numbers.
    """
    failed.update(failure.reward for failure in failures)
    for reward in rewards:
        own = [failure for failure in failures if failure.reward == reward.name]
        for failure in own:
            if failure.fatal or reward.on_error == "raise":
                raise RewardError(failure.describe())
        if own and failed[reward.name] > reward.max_error_rate * rows:
            raise RewardError(
                f"reward '{reward.name}' failed for {failed[reward.name] / rows:.1%} of {rows:,} rows so far, more "
                f"than its max_error_rate of {reward.max_error_rate:.1%}; the last: {own[-1].describe()}"
            )
