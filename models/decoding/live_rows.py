"""Which rows are still computed, and where each stands in the cache."""

from collections.abc import Callable, Sequence

import torch

from models.decoding.attention import Step
from models.decoding.cache import RolloutCache
from models.decoding.prompts import Begun, Prompts


class LiveRows:
    """Rows that have not ended, and their prompts, without holes: what is last takes the place of what leaves.

    Attributes:
        rows: the row at each place.
        prompts: the prompt at each place.
    """

    def __init__(self, prompts: Prompts, cache: RolloutCache):
        self.of_row = prompts.of_row
        self.positions = prompts.positions
        self.padding = prompts.padding
        self.cache = cache
        self.rows: list[int] = []
        self.prompts: list[int] = []
        self._laid_out = 0

    def enter(self, begun: Begun) -> None:
        """Takes rows in, and the prompts that were read for them."""
        self.cache.enter(begun, len(self.prompts))
        self.rows += begun.rows
        self.prompts += begun.prompts
        self._lay_out()

    def leave(self, ended: Callable[[int], bool], tokens: Callable[[int], int], waiting: Sequence[int] = ()) -> None:
        """Lets rows go, and prompts of which none is left, nor waits.

        Args:
            ended: whether a row goes; tokens: how many of a row are in the cache; waiting: rows to come.
        """
        moves = _close_holes(self.rows, ended)
        if not moves and len(self.rows) == self._laid_out:
            return
        self.cache.keep_rows(moves, len(self.rows), [tokens(self.rows[target]) for _, target in moves])
        alive = {self.of_row[row] for row in (*self.rows, *waiting)}
        moves = _close_holes(self.prompts, lambda prompt: prompt not in alive)
        self.cache.keep_prompts(moves)
        self._lay_out()

    def _lay_out(self) -> None:
        """Finds where each row stands in the table of prompts by rows."""
        self._laid_out = len(self.rows)
        if not self.rows:
            return
        place = {prompt: number for number, prompt in enumerate(self.prompts)}
        members: list[list[int]] = [[] for _ in self.prompts]
        for number, row in enumerate(self.rows):
            members[place[self.of_row[row]]].append(number)
        self.group = max(map(len, members))
        grid = [number for own in members for number in own + [0] * (self.group - len(own))]
        device = self.positions.device
        self.grid = self.back = None
        if grid != list(range(len(self.rows))):
            back = [0] * len(self.rows)
            for prompt, own in enumerate(members):
                for number, slot in enumerate(own):
                    back[slot] = prompt * self.group + number
            self.grid, self.back = torch.tensor(grid, device=device), torch.tensor(back, device=device)
        numbers = torch.tensor([self.of_row[row] for row in self.rows], device=device)
        self.first = self.positions.index_select(-2, numbers) + 1  # (..., R, 1), of each row's first own token
        self.bias = None
        if self.padding is not None:
            self.bias = self.padding[torch.tensor(self.prompts, device=device)]

    def step(self, starts: Sequence[int], tokens: int) -> Step:
        """Of the next forward: rows have so many own tokens before."""
        even = tokens == 1 and min(starts) == max(starts)
        device = self.positions.device
        return self.step_of(
            torch.tensor(starts, device=device), tokens, starts[0] if even else None, max(starts) + tokens
        )

    def step_of(self, starts: torch.Tensor, tokens: int, at: int | None, width: int) -> Step:
        """See `Step`; `width` may be more than the rows have, and `starts` may change before a forward."""
        return Step(
            starts,
            tokens,
            at,
            width,
            len(self.prompts),
            self.group,
            self.grid,
            self.back,
            self.bias,
        )


def _close_holes(occupants: list[int], leaves: Callable[[int], bool]) -> list[tuple[int, int]]:
    """Removes some, and moves the last ones to their places: pairs of places, from where and to where."""
    moves, place = [], 0
    while place < len(occupants):
        if not leaves(occupants[place]):
            place += 1
            continue
        last = occupants.pop()
        if len(occupants) > place and not leaves(last):
            moves.append((len(occupants), place))
            occupants[place] = last
    return moves
