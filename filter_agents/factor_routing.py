"""Predicted factors to filtering agents: a table that says which agent mends which factor, and running it on a pool.

The table is a YAML mapping that a person can correct:

    blurry_image: blur_filter
    a_circle: null              # nothing to mend

An agent judges only the items for which one of its factors is predicted, by its default bounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from data.factor_labels.clusters import normalise, text_vectors
from data.factor_labels.text_encoder import Encode
from data.io.records import RecordError, atomic_write
from data.reports.pool import ItemId, load_pool
from filter_agents.base import CopiesAgent, FilterAgent

LEAST_SIMILARITY = 0.27
"""Below this cosine of a factor with an agent's name and description, no agent is suggested."""

Routes = dict[str, str | None]
"""Factor id -> agent name, or `None`."""


@dataclass(frozen=True)
class Suggestion:
    """The agent that is nearest to a factor.

    Attributes:
        agent: `None` where none is near enough.
        similarity: cosine with the nearest one.
    """

    agent: str | None
    similarity: float


def suggest_routes(
    names: Mapping[str, str], agents: Mapping[str, FilterAgent], encode: Encode, least: float = LEAST_SIMILARITY
) -> dict[str, Suggestion]:
    """For each factor the agent whose name or description means most nearly the same. A suggestion, to be checked.

    Args:
        names: factor id -> readable name.
    """
    known = list(agents)
    factors = text_vectors([normalise(name) for name in names.values()], encode)
    called = text_vectors([name.replace("_", " ") for name in known], encode)
    described = text_vectors([normalise(agents[name].description) for name in known], encode)
    cosines = np.maximum(factors @ called.T, factors @ described.T)  # (factors, agents)
    found = {}
    for factor, row in zip(names, cosines, strict=True):
        best = int(row.argmax())
        found[factor] = Suggestion(known[best] if row[best] >= least else None, float(row[best]))
    return found


def write_routes(path: str | Path, suggestions: Mapping[str, Suggestion]) -> None:
    """Writes the table, with the similarities as comments."""
    with atomic_write(path) as file:
        file.write("# Factor id: filtering agent, or null where none mends it. Suggested by similarity; correct it.\n")
        for factor, found in suggestions.items():
            entry = yaml.safe_dump({factor: found.agent}, allow_unicode=True).removesuffix("\n")
            file.write(f"{entry}  # similarity {found.similarity:.2f}\n")


def load_routes(path: str | Path, factors: Sequence[str], agents: Mapping[str, FilterAgent]) -> Routes:
    """The table; a factor that does not stand in it has no agent.

    Raises:
        RecordError: not a YAML mapping, or an unknown factor or agent; lists every problem.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordError([f"{path}: not valid YAML: {error}"]) from error
    if not isinstance(content, dict):
        raise RecordError([f"{path}: expected a mapping of factors to agents, found {type(content).__name__}"])
    problems = []
    for factor, agent in content.items():
        if factor not in factors:
            problems.append(f"{path}: unknown factor {factor!r}; the model predicts {', '.join(factors)}")
        if agent is not None and not (isinstance(agent, str) and agent in agents):
            problems.append(
                f"{path}: factor {factor!r}: unknown agent {agent!r}; expected {', '.join(agents)}, or null"
            )
    if problems:
        raise RecordError(problems)
    return {factor: content.get(factor) for factor in factors}


def routed_agents(factors: Sequence[str], routes: Routes) -> list[str]:
    """The agents of some factors, each once, in the order of the factors."""
    return list(dict.fromkeys(routes[factor] for factor in factors if routes[factor] is not None))


@dataclass(frozen=True)
class RoutedPool:
    """What routing did to a pool.

    Attributes:
        kept: ids that remain, in the pool's order.
        removed_by: id of each removed item -> the agents that dropped it.
    """

    kept: list[ItemId]
    removed_by: dict[ItemId, list[str]]


def run_routes(
    pool_folder: str, factors_of: Mapping[ItemId, Sequence[str]], routes: Routes, agents: Mapping[str, FilterAgent]
) -> RoutedPool:
    """Runs on each item the agents of its factors, with the agents' default bounds.

    Args:
        factors_of: item id -> predicted factors.
    """
    agents_of = {item: routed_agents(factors, routes) for item, factors in factors_of.items()}
    pool_ids = load_pool(pool_folder).ids
    remaining = set(pool_ids)
    removed_by: dict[ItemId, list[str]] = {}
    names = {agent for found in agents_of.values() for agent in found}
    by_itself = {name for name in names if not isinstance(agents[name], CopiesAgent)}
    for group in (sorted(by_itself), *([name] for name in sorted(names - by_itself))):  # copies are judged last
        for name in group:
            parameters = agents[name].read_prompt("").parameters
            among = () if name in by_itself else (remaining,)
            kept = set((agents[name].keep_among if among else agents[name].keep)(pool_folder, parameters, *among))
            for item in remaining.difference(kept):
                if name in agents_of[item]:
                    removed_by.setdefault(item, []).append(name)
        remaining.difference_update(removed_by)
    kept_ids = [item for item in pool_ids if item in remaining]
    return RoutedPool(kept_ids, {item: removed_by[item] for item in pool_ids if item in removed_by})


@dataclass(frozen=True)
class RoutingCheck:
    """What routing leaves aside.

    Attributes:
        factors_without_agent: factor id -> number of items for which it is predicted.
        items_without_factor: ids for which nothing is predicted.
    """

    factors_without_agent: dict[str, int]
    items_without_factor: list[ItemId]


def check_routes(factors_of: Mapping[ItemId, Sequence[str]], routes: Routes) -> RoutingCheck:
    """Which factors lead to no agent, and which items to no factor."""
    counts = {factor: 0 for factor, agent in routes.items() if agent is None}
    for factors in factors_of.values():
        for factor in factors:
            if factor in counts:
                counts[factor] += 1
    return RoutingCheck(counts, [item for item, factors in factors_of.items() if not factors])
