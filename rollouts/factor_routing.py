"""A factor predictor looks at every image of a data set, and the filtering agents of what it finds filter it.

    python -m rollouts.factor_routing suggest outputs/factors/damages_model --output outputs/factors/routing.yaml
    python -m rollouts.factor_routing run outputs/report/pool --model outputs/factors/damages_model \\
        --routing outputs/factors/routing.yaml --output outputs/report/routed.jsonl

`suggest` writes the table of factors and agents (`filter_agents/factor_routing.py`), for a person to correct. `run`
writes a row for each item of a pool (`data/reports/pool.py`): `{"id", "factors", "probabilities": {factor: p}, "kept",
"removed_by"?}`, and says which factors have no agent and which images no factor. Killed and started again, it goes on.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.cli.arguments import add_restart_argument, add_skip_argument, at_least, jsonl_file
from data.cli.commands import check_alone, command
from data.cli.locks import parse_and_hold
from data.factor_labels.text_encoder import BUNDLED_MINILM, load_text_encoder
from data.io.records import read_rows, write_jsonl
from data.io.shards import ShardStore, end_processes, process_state, work_folder
from data.io.unreadable import Skipping, refuse_unreadable
from data.reports.pool import ItemId, images_of_pools, load_pool, readable_pool
from filter_agents.factor_routing import (
    LEAST_SIMILARITY,
    check_routes,
    load_routes,
    run_routes,
    suggest_routes,
    write_routes,
)
from models.places import model_place

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


def suggest(arguments: argparse.Namespace) -> None:
    """Writes and prints the table."""
    from filter_agents.registry import build_agents
    from models.factors.predictor import load_factor_config

    config = load_factor_config(arguments.model)
    names = {factor: (config.factor_names or {}).get(factor, factor) for factor in config.factors}
    encode = load_text_encoder(arguments.encoder)
    found = suggest_routes(names, build_agents(arguments.agents), encode, arguments.least_similarity)
    write_routes(arguments.output, found)
    for factor, suggestion in found.items():
        print(f"{factor:<32}{suggestion.agent or 'no agent':<28}{suggestion.similarity:.2f}")
    print(f"written to {arguments.output}; correct what is wrong there")


def run(arguments: argparse.Namespace) -> None:
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


def route(arguments: argparse.Namespace, pool: str, skipping: Skipping) -> None:
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
        "pool": str(Path(arguments.pool).resolve()),
        "model": model_fingerprint(find_model(arguments.model)),
        "left_out": skipping.positions(),
    }
    predict_pool(pool, model, settings, work, predicted, arguments.batch_size, arguments.restart)
    if not process_state().is_main_process:
        return
    rows = {row["id"]: row for _, row in read_rows(predicted)}
    factors_of = {item: row["factors"] for item, row in rows.items()}
    outcome = run_routes(pool, factors_of, routes, agents)
    for item, row in rows.items():
        row["kept"] = item not in outcome.removed_by
        if not row["kept"]:
            row["removed_by"] = outcome.removed_by[item]
    skipping.write(arguments.output)
    write_jsonl(arguments.output, rows.values())
    if not outcome.kept:
        print(f"warning: nothing is kept of {arguments.pool}", file=sys.stderr)
    check = check_routes(factors_of, routes)
    for factor, count in check.factors_without_agent.items():
        print(f"factor without an agent: {factor} ({count} images)")
    without = check.items_without_factor
    if without:
        more = f" and {len(without) - ITEMS_SHOWN} more" if len(without) > ITEMS_SHOWN else ""
        shown = ", ".join(map(str, without[:ITEMS_SHOWN]))
        print(f"images without a factor: {len(without)} of {len(rows)}: {shown}{more}")
    print(f"{len(outcome.kept)} of {len(rows)} images kept, written to {arguments.output}")


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rollouts.factor_routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("suggest", help="write a table of factors and agents")
    table.add_argument("model", help="factor predictor: folder or Hub id")
    table.add_argument(
        "--encoder",
        type=model_place("--encoder"),
        default=BUNDLED_MINILM,
        help=f"sentence-transformers: folder, Hub id, or {BUNDLED_MINILM}",
    )
    table.add_argument(
        "--least-similarity", type=float, default=LEAST_SIMILARITY, help="below it no agent is suggested"
    )
    routed = commands.add_parser("run", help="predict the factors of a pool's images, and run their agents")
    routed.add_argument("pool", help="folder with items.jsonl (data/reports/pool.py)")
    routed.add_argument(
        "--model", type=model_place("--model"), required=True, help="factor predictor: folder or Hub id"
    )
    routed.add_argument("--routing", type=Path, required=True, help="table that `suggest` wrote")
    routed.add_argument("--batch-size", type=at_least(1), default=32, help="images looked at together")
    add_restart_argument(routed)
    add_skip_argument(routed)
    routed.add_argument("--device", help="by default an accelerator if there is one")
    for subparser, file in ((table, Path), (routed, jsonl_file)):
        subparser.add_argument("--agents", nargs="+", metavar="AGENT", help="by default all that need no model")
        subparser.add_argument("--output", type=file, required=True)
    return parse_and_hold(parser, argv)


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    arguments = _parse_arguments(argv)

    if arguments.command == "suggest":
        check_alone()
        suggest(arguments)
    else:
        run(arguments)
        end_processes()


if __name__ == "__main__":
    main()
