"""How many sets of examples are tried for a query, and of which kind: options of `rollouts.candidates`."""

from dataclasses import dataclass
from typing import Literal

from data.cli.arguments import option, seed_option
from data.cli.ranges import ABOVE_0, AT_LEAST_0


@dataclass(kw_only=True)
class ProposalSettings:
    """How many sets of which kind are made for a query."""

    num_beams: int = option("of the selector", 5, within=AT_LEAST_0)
    temperatures: tuple[float, ...] = option("of samples of the selector", (1.0, 1.3), within=ABOVE_0)
    num_samples: int = option("of the selector, at each temperature", 2, within=AT_LEAST_0)
    num_retrieval: int = option("sets with the largest summed cosine to the query", 5, within=AT_LEAST_0)
    num_random: int = option("sets unlike all others", 1, within=AT_LEAST_0)
    distinct: Literal["sets", "orders"] = option("what makes two candidates two", "sets")
    seed: int = seed_option("of samples and random sets")
