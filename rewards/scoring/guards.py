"""Which guard a reward gets (`rewards/scoring/failure_policy.py`): by row or by group, awaited or not."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from rewards.scoring.failure_policy import GuardedAsyncReward, GuardedReward, row_names, some_rows


class GuardedGroupReward(GuardedReward):
    """The guard of a reward with `scores_groups`: its function is called once a group, with all its completions.

    A group that fails has no scores at all, and each of its rows counts as one that failed. `log_extra` is not handed
    on: its values would come group by group.
    """

    def __call__(self, completions: list, **columns: Any) -> Any:
        """The scores of one group."""
        return self.by_groups(completions, columns, [0] * len(completions))

    def by_groups(self, completions: list, columns: dict[str, Any], groups: Sequence[Hashable]) -> Any:
        """The scores of completions of any number of groups, in order; awaitable if the reward is.

        Args:
            groups: of each completion, equal for those of one group, wherever they stand.
        """
        self.failures = []
        scores: list[float | None] = [None] * len(completions)
        for rows, names, arguments in self._calls(completions, columns, groups):
            try:
                found = self._checked(self._call(*arguments), names, _whole(names))
            except Exception as error:
                found = self._failed(names, error)
            _place(found, rows, scores)
            if self.failures and self.on_error == "raise":
                break
        return scores

    def _calls(
        self, completions: list, columns: dict[str, Any], groups: Sequence[Hashable]
    ) -> Iterator[tuple[list[int], list[str], tuple[list, dict[str, Any]]]]:
        """Of each group its rows, how messages call them, and the arguments of its call."""
        names = row_names(columns, len(completions))
        columns = {name: value for name, value in columns.items() if name != "log_extra"}
        members: dict[Hashable, list[int]] = {}
        for row, group in enumerate(groups):
            members.setdefault(group, []).append(row)
        for rows in members.values():
            yield rows, [names[row] for row in rows], some_rows(completions, columns, rows)

    def _failed(self, names: list[str], error: Exception) -> list[float | None]:
        for _ in names:
            self._add_failure(_whole(names), error)
        return [None] * len(names)


def _whole(names: list[str]) -> str:
    """How messages call a group."""
    return f"{names[0]} (its group as a whole)"


def _place(found: list[float | None], rows: list[int], scores: list[float | None]) -> None:
    for row, score in zip(rows, found, strict=True):
        scores[row] = score


class GuardedAsyncGroupReward(GuardedGroupReward):
    """The same for an `async def` reward: groups are scored side by side."""

    async def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        return await super().__call__(completions, **columns)

    async def by_groups(
        self, completions: list, columns: dict[str, Any], groups: Sequence[Hashable]
    ) -> list[float | None]:
        self.failures = []
        scores: list[float | None] = [None] * len(completions)

        async def score_group(rows: list[int], names: list[str], arguments: tuple[list, dict[str, Any]]) -> None:
            try:
                found = self._checked(await self._call(*arguments), names, _whole(names))
            except Exception as error:
                found = self._failed(names, error)
            _place(found, rows, scores)

        await asyncio.gather(*(score_group(*call) for call in self._calls(completions, columns, groups)))
        return scores


def scores_of(
    reward: GuardedReward, completions: list, columns: dict[str, Any], groups: Sequence[Hashable]
) -> list[float | None]:
    """Scores by a reward of any kind, awaited where they have to be.

    Args:
        groups: of each completion, for rewards that score groups (`GuardedGroupReward.by_groups`).
    """
    if isinstance(reward, GuardedGroupReward):
        result = reward.by_groups(completions, columns, groups)
    else:
        result = reward(completions, **columns)
    return asyncio.run(result) if inspect.isawaitable(result) else result


_FORMS = {
    (False, False): GuardedReward,
    (False, True): GuardedAsyncReward,
    (True, False): GuardedGroupReward,
    (True, True): GuardedAsyncGroupReward,
}
"""Guards, by whether the function scores groups, and whether it is `async`."""


def guard(function: Callable, name: str, **policy: Any) -> GuardedReward:
    """The guarded form of a reward, awaitable if the reward is."""
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )
    own = function.func if isinstance(function, functools.partial) else function
    return _FORMS[getattr(own, "scores_groups", False), is_async](function, name, **policy)
