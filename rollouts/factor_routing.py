"""A factor predictor looks at every image of a data set, and the filtering agents of what it finds filter it.

    python -m rollouts.factor_routing suggest --model outputs/factors/model --output outputs/factors/routing.yaml
    python -m rollouts.factor_routing run --pool outputs/report/pool --model outputs/factors/model \\
        --routing outputs/factors/routing.yaml --output outputs/report/routed.jsonl

`suggest` writes the table that says which agent mends which factor, a YAML mapping for a person to correct:

    blurry_image: blur_filter
    a_circle: null              # nothing to mend

`run` writes a row for each item of a pool (`data/reports/pool.py`): `{"id", "factors", "probabilities": {factor: p},
"kept", "removed_by"?}`, and says which factors have no agent and which images no factor. An agent judges only what one
of its factors is predicted for, by its default bounds. Killed and started again, the command goes on.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.cli.arguments import UNNAMED, device_option, option, rows_file_option, skip_unreadable_option
from data.cli.commands import check_alone, command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1
from data.factor_labels.clusters import normalise, text_vectors
from data.factor_labels.text_encoder import Encode, encoder_option, load_text_encoder
from data.io.digests import pool_digest
from data.io.records import RecordError, atomic_write, read_rows, write_jsonl
from data.io.shards import RestartArguments, ShardStore, end_processes, process_state, work_folder
from data.io.unreadable import Skipping, refuse_unreadable
from data.reports.pool import ItemId, images_of_pools, load_pool, readable_pool
from filter_agents.base import CopiesAgent, FilterAgent
from models.model_paths import model_option

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
    found = (routes[factor] for factor in factors)
    return list(dict.fromkeys(agent for agent in found if agent is not None))


def run_routes(
    pool_folder: str, factors_of: Mapping[ItemId, Sequence[str]], routes: Routes, agents: Mapping[str, FilterAgent]
) -> dict[ItemId, list[str]]:
    """Runs on each item the agents of its factors, with the agents' default bounds.

    Args:
        factors_of: item id -> predicted factors.

    Returns:
        Id of each removed item -> the agents that dropped it.
    """
    agents_of = {item: routed_agents(factors, routes) for item, factors in factors_of.items()}
    remaining = set(load_pool(pool_folder).ids)
    removed_by: dict[ItemId, list[str]] = {}
    names = {agent for found in agents_of.values() for agent in found}
    by_itself = {name for name in names if not isinstance(agents[name], CopiesAgent)}
    for group in (sorted(by_itself), *([name] for name in sorted(names - by_itself))):  # copies are judged last
        for name in group:
            parameters = agents[name].read_prompt("").parameters
            among = () if name in by_itself else (remaining,)
            agent: Any = agents[name]
            kept = set((agent.keep_among if among else agent.keep)(pool_folder, parameters, *among))
            for item in remaining.difference(kept):
                if name in agents_of[item]:
                    removed_by.setdefault(item, []).append(name)
        remaining.difference_update(removed_by)
    return removed_by


def unrouted_factors(factors_of: Mapping[ItemId, Sequence[str]], routes: Routes) -> dict[str, int]:
    """Factors that lead to no agent -> number of items for which they are predicted."""
    counts = Counter(factor for factors in factors_of.values() for factor in factors)
    return {factor: counts[factor] for factor, agent in routes.items() if agent is None}


ITEMS_SHOWN = 10


def predict_pool(
    pool_folder: str,
    model: Any,
    settings: dict[str, Any],
    work: Path,
    output: Path,
    batch_size: int,
    restart: bool = False,
) -> None:
    """Writes a row of factors and probabilities for each item; images that are done are not looked at again.

    Args:
        model: a factor predictor.
        settings: what says which model, and which pool.
        work: folder of unfinished work.

    Raises:
        RecordError: `work` belongs to other settings.
    """
    pool = load_pool(pool_folder)
    items = {item.id: item for item in pool.items}

    def rows_of(chunk: list[ItemId]) -> Iterator[dict[str, Any]]:
        probabilities = model.probabilities([pool.image_path(items[item_id]) for item_id in chunk], batch_size)
        for item_id, row, factors in zip(chunk, probabilities, model.choose(probabilities), strict=True):
            shown = {name: round(float(p), 4) for name, p in zip(model.config.factors, row, strict=True)}
            yield {"id": item_id, "factors": factors, "probabilities": shown}

    with ShardStore(work, settings, sync_every=batch_size, restart=restart) as store:
        store.fill(output, list(items), rows_of, batch_size, unit="image")


@dataclass(kw_only=True)
class AgentArguments:
    """Agents."""

    agents: tuple[str, ...] | None = option("that factors may lead to; by default all that need no model", None)


@dataclass(kw_only=True)
class SuggestArguments(AgentArguments):
    """Writes a table of factors and agents."""

    model: str = model_option("factor predictor: folder or Hub id", old=(UNNAMED,))
    encoder: str = encoder_option()
    least_similarity: float = option("below it no agent is suggested", LEAST_SIMILARITY)
    output: Path = option("YAML file of the table")


@dataclass(kw_only=True)
class RouteArguments(AgentArguments, RestartArguments):
    """Predicts the factors of a pool's images, and runs their agents."""

    pool: str = option("folder with items.jsonl (data/reports/pool.py)", old=(UNNAMED,))
    model: str = model_option("factor predictor: folder or Hub id")
    routing: Path = option("table that suggest wrote")
    batch_size: int = option("images looked at together", 32, within=AT_LEAST_1)
    skip_unreadable: bool = skip_unreadable_option()
    device: str | None = device_option()
    output: Path = rows_file_option("JSONL file of what is found and kept")


def suggest(arguments: SuggestArguments) -> None:
    """Writes and prints the table."""
    from filter_agents.registry import build_agents
    from models.factors.predictor import load_factor_config

    config: Any = load_factor_config(arguments.model)
    names = {factor: (config.factor_names or {}).get(factor, factor) for factor in config.factors}
    encode = load_text_encoder(arguments.encoder)
    found = suggest_routes(names, build_agents(arguments.agents), encode, arguments.least_similarity)
    write_routes(arguments.output, found)
    for factor, suggestion in found.items():
        print(f"{factor:<32}{suggestion.agent or 'no agent':<28}{suggestion.similarity:.2f}")
    print(f"written to {arguments.output}; correct what is wrong there")


def run(arguments: RouteArguments) -> None:
    """Predicts, routes, writes and prints, for the items of the pool whose images can be read."""
    skipping = Skipping(arguments.skip_unreadable)
    with tempfile.TemporaryDirectory() as work:
        pool = arguments.pool
        if skipping.wanted:
            pool = readable_pool(pool, skipping.of("items"), Path(work) / "pool")
            skipping.report()
        else:
            refuse_unreadable(images_of_pools([load_pool(pool)]), name="image")
        route(arguments, pool, skipping)


def route(arguments: RouteArguments, pool: str, skipping: Skipping) -> None:
    """Predicts, routes, writes and prints.

    Args:
        pool: folder of what remains of the pool.
    """
    from filter_agents.registry import build_agents
    from models.factors.predictor import load_factor_predictor
    from models.run_folders import find_model, model_fingerprint

    agents = build_agents(arguments.agents)
    model = load_factor_predictor(arguments.model, arguments.device)
    routes = load_routes(arguments.routing, model.config.factors, agents)
    work = work_folder(arguments.output)
    predicted = work / "predicted.jsonl"
    settings = {
        "pool": pool_digest(load_pool(pool)),
        "model": model_fingerprint(find_model(arguments.model)),
        "left_out": skipping.positions(),
    }
    predict_pool(pool, model, settings, work, predicted, arguments.batch_size, arguments.restart)
    if not process_state().is_main_process:
        return
    rows = {row["id"]: row for _, row in read_rows(predicted)}
    factors_of = {item: row["factors"] for item, row in rows.items()}
    removed_by = run_routes(pool, factors_of, routes, agents)
    for item, row in rows.items():
        row["kept"] = item not in removed_by
        if not row["kept"]:
            row["removed_by"] = removed_by[item]
    skipping.write(arguments.output)
    write_jsonl(arguments.output, rows.values())
    kept = len(rows) - len(removed_by)
    if not kept:
        print(f"warning: nothing is kept of {arguments.pool}", file=sys.stderr)
    for factor, count in unrouted_factors(factors_of, routes).items():
        print(f"factor without an agent: {factor} ({count} images)")
    without = [item for item, factors in factors_of.items() if not factors]
    if without:
        more = f" and {len(without) - ITEMS_SHOWN} more" if len(without) > ITEMS_SHOWN else ""
        shown = ", ".join(map(str, without[:ITEMS_SHOWN]))
        print(f"images without a factor: {len(without)} of {len(rows)}: {shown}{more}")
    print(f"{kept} of {len(rows)} images kept, written to {arguments.output}")


COMMANDS = {"suggest": SuggestArguments, "run": RouteArguments}


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    arguments: Any = parse_and_hold(COMMANDS, argv)
    if isinstance(arguments, SuggestArguments):
        check_alone()
        suggest(arguments)
    else:
        run(arguments)
        end_processes()


if __name__ == "__main__":
    main()
