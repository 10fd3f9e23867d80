"""Rewards that score whole groups, where the completions of a group may lie on several processes.

The process that holds the first completion of a group scores it: it gets the others' rows, and all get its scores.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from rewards.scoring.guards import GuardedGroupReward

PASSED_ON = ("trainer_state", "log_metric")
"""Arguments of a reward that are no columns, and that those which score groups get too."""

Row = dict[str, Any]


def rows_to_send(rows: Sequence[Row], first: int, size: int) -> dict[int, Row]:
    """The rows of a process that complete a group which begins on an earlier one, by their number over all processes.

    Args:
        rows: of this process; first: the number of the first one.
        size: rows of a group.
    """
    return {first + place: row for place, row in enumerate(rows[: -first % size])}


def rows_to_score(rows: Sequence[Row], first: int, size: int, sent: dict[int, Row]) -> list[Row]:
    """The rows of all groups that begin on a process, in order.

    Args:
        sent: what `rows_to_send` returned, of all processes.
    """
    own = list(rows[-first % size :])
    after = first + len(rows)
    return own + [sent[number] for number in range(after, after + (-len(own) % size))]


class WholeGroups:
    """The groups that begin on this process, and the scores that rewards give them.

    All processes make it together, and call `fill` together.

    Args:
        rows: of this process, a completion each: the row's columns, and `prompts`, `completions` and `completion_ids`.
        size: completions of a group.
        process: number of this process; all have equally many rows.
    """

    def __init__(self, rows: list[Row], size: int, process: int):
        self._here = len(rows)
        first = process * len(rows)
        sent: dict[int, Row] = {}
        if len(rows) % size:  # on all processes, or on none
            for part in gather_object([rows_to_send(rows, first, size)]):
                sent |= part
        rows = rows_to_score(rows, first, size, sent)
        names = list(rows[0]) if rows else []
        self._columns = {name: [row[name] for row in rows] for name in names}
        self._completions = self._columns.pop("completions", [])
        self._groups = [row // size for row in range(len(rows))]
        self._scores: dict[int, list[float | None]] = {}  # by the place of the reward among all

    def scored_by(self, reward: GuardedGroupReward, place: int) -> Callable:
        """A reward of single rows, as the parent calls it, that scores the groups and says nothing of the rows yet.

        Args:
            place: of the reward among all of them.
        """

        def arguments(given: dict[str, Any]) -> tuple:
            passed_on = {name: given[name] for name in PASSED_ON if name in given}
            return self._completions, {**self._columns, **passed_on}, self._groups

        def score(**given: Any) -> list[None]:
            self._scores[place] = reward.by_groups(*arguments(given))
            return [None] * self._here

        async def score_async(**given: Any) -> list[None]:
            self._scores[place] = await reward.by_groups(*arguments(given))
            return [None] * self._here

        return score_async if inspect.iscoroutinefunction(reward.by_groups) else score

    def fill(self, rewards: torch.Tensor) -> None:
        """Puts the scores of all processes where they belong.

        Args:
            rewards: (N, R) of all processes, NaN where a reward does not apply.
        """
        for place in sorted(self._scores):
            scores: list[float | None] = gather_object(self._scores[place])
            found = [math.nan if score is None else score for score in scores]
            rewards[:, place] = torch.tensor(found, dtype=rewards.dtype, device=rewards.device)
