"""What backends that sample anew have in common."""

from collections.abc import Iterator, Sequence

from trainers.diagnosis.findings import Finding


class NewSamples:
    """The part of a backend that may be asked for any rows, of which all is known when they are sampled."""

    def rows(self, rows: Sequence[dict], limit: int) -> list[dict]:
        """The first rows."""
        return list(rows[:limit])

    def size(self, recipes: int) -> int:
        """As many as the recipe says."""
        return recipes

    def places(self) -> list[str]:
        """None: the samples are of the model."""
        return []

    def step(self) -> int | None:
        """None: the samples are of the model as it is."""
        return None

    def stale(self) -> bool:
        """They are of the model."""
        return False

    def findings(self, temperature: float) -> Iterator[Finding]:
        """None beside what is compared."""
        return iter(())
