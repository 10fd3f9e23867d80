"""How many tokens are drafted where that is not given: as many as pay, by what was accepted and what forwards took."""

MOST = 8
"""Tokens that are drafted at most."""
_KEPT = 0.97
"""Of what is known, with each forward: some thirty count."""


class FittingLength:
    """Follows the share of drafted tokens that were right, and the seconds of a forward, a line over its tokens.

    Where nothing is drafted, look-ups are still compared with what is sampled, which costs next to nothing; so drafts
    come back when they begin to pay. Until forwards of different widths were seen, more tokens count as free.
    """

    def __init__(self, most: int = MOST):
        self.most = most
        self._rows = self._found = 0.0  # live rows, and those for which something was found
        self._right = self._wrong = 0.0  # tokens that were looked up
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0  # of forwards, for the line

    def of_next(self, rows: int) -> int:
        """How many tokens to draft for each of so many live rows."""
        right = self._right / max(self._right + self._wrong, 1e-9)
        found = self._found / max(self._rows, 1e-9)
        fixed, each = self._line()

        def per_second(drafted: int) -> float:
            kept = 1 + found * sum(right**place for place in range(1, drafted + 1))
            return kept / max(fixed + each * rows * (drafted + 1), 1e-9)

        return max(range(self.most + 1), key=per_second) if self._right else 0

    def _line(self) -> tuple[float, float]:
        """Seconds of a forward, and of each of its tokens."""
        if not self._weight:
            return 1.0, 0.0
        tokens, seconds = self._tokens / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - tokens**2
        slope = (self._products / self._weight - tokens * seconds) / spread if spread > 1e-6 * tokens**2 else 0.0
        slope = min(max(slope, 0.0), seconds / tokens)
        return seconds - slope * tokens, slope

    def note_forward(self, tokens: int, seconds: float) -> None:
        """What a forward of so many tokens took, with sampling."""
        for name, value in (
            ("_weight", 1.0),
            ("_tokens", tokens),
            ("_seconds", seconds),
            ("_squares", tokens**2),
            ("_products", tokens * seconds),
        ):
            setattr(self, name, _KEPT * getattr(self, name) + value)

    def note_look_ups(self, rows: int, found: int, right: int, wrong: int) -> None:
        """Of so many rows, something was found for some; of its tokens so many were right, and were compared and
        wrong."""
        self._rows = _KEPT * self._rows + rows
        self._found = _KEPT * self._found + found
        self._right = _KEPT * self._right + right
        self._wrong = _KEPT * self._wrong + wrong
