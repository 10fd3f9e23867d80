"""Candidates for a selector to learn from: sets of examples, each shown to a VLM and scored by VQA accuracy.

    python -m rollouts.candidates --dataset outputs/vqa --split train --pools outputs/pools.jsonl \\
        --selector outputs/selector_sft --query-table outputs/train.safetensors \\
        --example-table outputs/train.safetensors --model outputs/vlm --shots 1 2 4 --output outputs/candidates.jsonl

For every query that has a pool and every number of shots: the selector's beams, samples of it at each temperature, the
sets most similar to the query, and random sets; equal ones once. Without --selector only the last two, and those of
--beams. Writes candidate groups (`data/candidate_groups.py`), one for each query and number of shots. Started again
after it was stopped, it goes on; `accelerate launch` divides the queries among processes. See docs/candidates.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from data.candidates.embedding_table import table_path
from data.cli.arguments import add_limit_argument, add_restart_argument, add_skip_argument, at_least, jsonl_file
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.io.digests import file_digest, rows_digest
from data.io.records import RecordError
from data.io.shards import ShardStore, end_processes, process_state, work_folder
from data.io.unreadable import Skipping
from data.reports.pool import ItemId
from models.places import model_place
from rollouts.frozen_vlm.arguments import add_vlm_arguments

VERSION = 1
"""Raised when the same settings make other rows."""


def _data_digest(data) -> str:
    """Of what the rows are made from: queries, pools, and the examples in them."""
    pooled = dict.fromkeys(item for pool in data.pools.values() for item in pool)
    records = (*data.queries, *(data.examples[item] for item in pooled))
    names = ("id", "question", "answers", "images")
    return rows_digest(
        {name: getattr(record, name) for name in names} | {"pool": data.pools.get(record.id)} for record in records
    )


PROPOSAL_OPTIONS = ("num_beams", "temperatures", "num_samples", "num_retrieval", "num_random", "distinct", "seed")
OTHER_OPTIONS = ("shots", "construct_order", "gt_prob", "relevance", "batch_size")


def _settings(arguments: argparse.Namespace, data, book, selector_name: str | None, skipping: Skipping) -> dict:
    """What decides the rows; a store with other settings is refused."""
    from models.run_folders import model_fingerprint

    return {
        "version": VERSION,
        "data": _data_digest(data),
        "vlm": book.settings,
        "selector": None if selector_name is None else model_fingerprint(selector_name),
        "query_table": None if arguments.query_table is None else file_digest(table_path(arguments.query_table)),
        "example_table": None if arguments.example_table is None else file_digest(table_path(arguments.example_table)),
        "beams": None if arguments.beams is None else file_digest(arguments.beams),
        "left_out": skipping.positions(),
        **{name: getattr(arguments, name) for name in (*PROPOSAL_OPTIONS, *OTHER_OPTIONS)},
    }


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises `RecordError` for options that do not go together."""
    users = {"--selector": arguments.selector, "--num-retrieval above 0": arguments.num_retrieval}
    needing = [name for name, used in users.items() if used]
    problems = []
    if needing and (arguments.query_table is None or arguments.example_table is None):
        problems.append(f"--query-table and --example-table are needed by {' and by '.join(needing)}")
    if not (needing or arguments.num_random or arguments.beams):
        problems.append("nothing to make: give --selector, --beams, --num-retrieval or --num-random")
    if problems:
        raise RecordError(problems)


def make_candidates(arguments: argparse.Namespace) -> None:
    """Reads and checks everything, makes what is missing, and merges."""
    from rollouts.example_selection.data import load_selection_data, load_tables

    _check_options(arguments)
    examples = (arguments.dataset, arguments.split)
    queries = (arguments.queries, arguments.queries_split) if arguments.queries else examples
    shots = max(arguments.shots)
    skipping = Skipping(arguments.skip_unreadable)
    data = load_selection_data(
        queries, examples, arguments.pools, shots, only_pooled=True, limit=arguments.limit, skipping=skipping
    )
    tables = None
    if arguments.query_table is not None and arguments.example_table is not None:
        tables = load_tables(arguments.query_table, arguments.example_table, data)
    given = _load_given(arguments, data, skipping)

    from rollouts.example_selection.choices import load_fitting_selector
    from rollouts.example_selection.proposals import ProposalSettings
    from rollouts.example_selection.scored_candidates import CandidateMaker
    from rollouts.frozen_vlm.answers import open_answer_book

    device = arguments.device or process_state().device
    selector_name, selector = None, None
    if arguments.selector:
        selector_name, selector = load_fitting_selector(arguments.selector, tables, shots, device)
    work = arguments.work_dir or work_folder(arguments.output)
    book = open_answer_book(arguments, arguments.answer_cache or work / "answers")
    maker = CandidateMaker(
        data,
        book,
        ProposalSettings(**{name: getattr(arguments, name) for name in PROPOSAL_OPTIONS}),
        arguments.shots,
        tables,
        selector,
        given,
        arguments.construct_order,
        arguments.gt_prob,
        arguments.relevance,
    )
    _make_all(maker, work, _settings(arguments, data, book, selector_name, skipping), arguments, skipping)


def _make_all(maker, work: Path, settings: dict, arguments: argparse.Namespace, skipping: Skipping) -> None:
    """The rows of all queries, each kept as soon as it is there, and the file of groups at the end."""
    by_id = {query.id: query for query in maker.data.queries}

    def rows_of(chunk: list[ItemId]) -> Iterator[dict]:
        made = maker.groups([by_id[query_id] for query_id in chunk])
        return ({"id": query_id, "groups": groups} for query_id, groups in zip(chunk, made, strict=True))

    merged = work / "candidates.jsonl"
    with ShardStore(work, settings, restart=arguments.restart) as store:
        store.fill(merged, list(by_id), rows_of, arguments.batch_size, unit="query")
        if store.is_main:
            skipping.write(arguments.output)
            _write_groups(merged, arguments)
            asked, computed = (maker.book.counts[name] for name in ("asked", "computed"))
            print(f"{asked} answers and probabilities looked up, {computed} of them asked of the VLM in this run")


def _load_given(arguments: argparse.Namespace, data, skipping: Skipping) -> dict:
    if arguments.beams is None:
        return {}
    from data.candidate_groups import load_groups
    from rollouts.example_selection.scored_candidates import given_candidates

    gone = skipping.ids("examples")
    groups = load_groups(arguments.beams, example_ids=data.examples.keys() | gone, check_files=False)
    return given_candidates(groups, str(arguments.beams), data, gone)


def _write_groups(merged: Path, arguments: argparse.Namespace) -> None:
    """The groups of the merged rows that pass the filters, a line each; and a line on what they hold."""
    from data.io.records import read_rows, write_jsonl
    from rollouts.example_selection.scored_candidates import share_of_positive

    groups = [group for _, row in read_rows(merged) for group in row["groups"]]
    shares = [share_of_positive(group) for group in groups]
    low, high = arguments.balance or (0.0, 1.0)
    least = 1e-12 if arguments.require_positive else 0.0
    kept = [group for group, share in zip(groups, shares, strict=True) if low <= share <= high and share >= least]
    if not kept:
        raise RecordError(
            [f"{arguments.output}: none of {len(groups)} groups passes --balance and --require-positive; not written"]
        )
    write_jsonl(arguments.output, kept)
    total = sum(len(group["candidates"]) for group in kept)
    mean = sum(candidate["vqa_acc_score"] for group in kept for candidate in group["candidates"]) / total
    print(
        f"{len(kept)} of {len(groups)} groups written to {arguments.output}: {total} candidates, mean accuracy "
        f"{mean:.3f}, {100 * sum(map(share_of_positive, kept)) / len(kept):.1f}% right"
    )


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rollouts.candidates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", required=True, help="the examples: VQA records, file or folder or Hub data set")
    data.add_argument("--split", default="train", help="of a folder or Hub data set")
    data.add_argument("--queries", help="records of the queries; by default they are among the examples")
    data.add_argument("--queries-split", default="validation", help="split of --queries")
    data.add_argument("--pools", type=Path, required=True, help="candidate pools; their queries are answered")
    data.add_argument("--query-table", type=Path, help="embeddings of the queries (rollouts.embeddings)")
    data.add_argument("--example-table", type=Path, help="embeddings of the examples, by the same encoders")
    add_limit_argument(data, "queries of the pools")
    made = parser.add_argument_group("candidates of a query")
    made.add_argument(
        "--shots", nargs="+", type=at_least(1), default=[2], help="numbers of examples, a group for each"
    )
    made.add_argument("--selector", type=model_place("--selector"), help="a model, the folder of a run, or a Hub id")
    made.add_argument(
        "--beams", type=Path, help="candidate groups (or earlier beam JSON) whose pointers are taken too"
    )
    made.add_argument("--num-beams", type=at_least(0), default=5, help="of the selector")
    made.add_argument("--temperatures", nargs="+", type=float, default=[1.0, 1.3])
    made.add_argument("--num-samples", type=at_least(0), default=2, help="of the selector, at each temperature")
    made.add_argument(
        "--num-retrieval", type=at_least(0), default=5, help="sets with the largest summed cosine to the query"
    )
    made.add_argument("--num-random", type=at_least(0), default=1, help="sets unlike all others")
    made.add_argument("--distinct", choices=("sets", "orders"), default="sets", help="what makes two candidates two")
    made.add_argument("--seed", type=at_least(0), default=0, help="of samples and random sets")
    scored = parser.add_argument_group("scores and filters")
    scored.add_argument("--gt-prob", action="store_true", help="also the probability of the right answers")
    scored.add_argument("--relevance", action="store_true", help="also the likeness of answers to the right ones")
    scored.add_argument(
        "--balance",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="keep groups whose share of right candidates is in this range",
    )
    scored.add_argument("--require-positive", action="store_true", help="keep groups with a right candidate")
    parser.add_argument(
        "--batch-size", type=at_least(1), default=32, help="queries whose candidates are made together"
    )
    parser.add_argument("--work-dir", type=Path, help="where unfinished work is kept; by default OUTPUT.parts")
    add_restart_argument(parser)
    add_skip_argument(parser)
    parser.add_argument("--answer-cache", type=Path, help="folder of answers to share between runs")
    parser.add_argument("--output", type=jsonl_file, required=True, help="JSONL of candidate groups")
    add_vlm_arguments(parser)
    arguments = parse_and_hold(parser, argv)
    if min(arguments.temperatures) <= 0:
        parser.error(f"--temperatures: expected numbers above 0, found {min(arguments.temperatures)}")
    if arguments.balance and not 0 <= arguments.balance[0] <= arguments.balance[1] <= 1:
        parser.error(f"--balance: expected 0 <= LOW <= HIGH <= 1, found {' '.join(map(str, arguments.balance))}")
    arguments.shots = sorted(set(arguments.shots))
    return arguments


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    make_candidates(_parse_arguments(argv))
    end_processes()


if __name__ == "__main__":
    main()
