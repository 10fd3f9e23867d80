"""Candidates for a selector to learn from: sets of examples, each shown to a VLM and scored by VQA accuracy.

    python -m rollouts.candidates --dataset_name outputs/vqa --split train --pools outputs/pools.jsonl \\
        --selector outputs/selector_sft --query_table outputs/train.safetensors \\
        --example_table outputs/train.safetensors --model outputs/vlm --shots 1 2 4 --output outputs/candidates.jsonl

For every query that has a pool and every number of shots: the selector's beams, samples of it at each temperature, the
sets most similar to the query, and random sets; equal ones once. Without --selector only the last two, and those of
--beams. Writes candidate groups (`data/candidate_groups.py`), one for each query and number of shots. Started again
after it was stopped, it goes on; `accelerate launch` divides the queries among processes. See docs/candidates.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.candidates.embedding_table import table_path
from data.cli.arguments import (
    OptionError,
    limit_option,
    option,
    options_of,
    rows_file_option,
    skip_unreadable_option,
    split_option,
)
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1, SHARE
from data.io.digests import file_digest, rows_digest
from data.io.records import RecordError
from data.io.shards import KeptWorkArguments, ShardStore, end_processes, process_state
from data.io.unreadable import Skipping
from data.reports.pool import ItemId
from models.model_paths import model_option
from models.served.address import is_server
from rollouts.example_selection.proposal_settings import ProposalSettings
from rollouts.frozen_vlm.arguments import ServedVLMArguments

VERSION = 1
"""Raised when the same settings make other rows."""


def _data_digest(data: Any) -> str:
    """Of what the rows are made from: queries, pools, and the examples in them."""
    pooled = dict.fromkeys(item for pool in data.pools.values() for item in pool)
    records = (*data.queries, *(data.examples[item] for item in pooled))
    names = ("id", "question", "answers", "images")
    return rows_digest(
        {name: getattr(record, name) for name in names} | {"pool": data.pools.get(record.id)} for record in records
    )


OTHER_OPTIONS = ("shots", "construct_order", "gt_prob", "relevance", "batch_size")


@dataclass(kw_only=True)
class CandidateArguments(ProposalSettings, ServedVLMArguments, KeptWorkArguments):
    """Of what, how many and which candidates are made and kept."""

    dataset_name: str = option("the examples: VQA records, file or folder or Hub data set", old=("dataset",))
    split: str = split_option("train")
    queries: str | None = option("records of the queries; by default they are among the examples", None)
    queries_split: str = option("split of queries", "validation")
    pools: Path = option("candidate pools; their queries are answered")
    query_table: Path | None = option("embeddings of the queries (rollouts.embeddings)", None)
    example_table: Path | None = option("embeddings of the examples, by the same encoders", None)
    limit: int | None = limit_option("queries of the pools")
    shots: tuple[int, ...] = option("numbers of examples, a group for each", (2,), within=AT_LEAST_1)
    selector: str | None = model_option("a model, the folder of a run, or a Hub id", None)
    beams: Path | None = option("candidate groups (or earlier beam JSON) whose pointers are taken too", None)
    gt_prob: bool = option("score also the probability of the right answers", False)
    relevance: bool = option("score also the likeness of answers to the right ones", False)
    balance: tuple[float, float] | None = option(
        "keep groups whose share of right candidates is from the first to the second", None, within=SHARE
    )
    require_positive: bool = option("keep groups with a right candidate", False)
    batch_size: int = option("queries whose candidates are made together", 32, within=AT_LEAST_1)
    skip_unreadable: bool = skip_unreadable_option()
    output: Path = rows_file_option("JSONL of candidate groups")

    def __post_init__(self):
        self.shots = tuple(sorted(set(self.shots)))
        if self.balance and self.balance[0] > self.balance[1]:
            raise OptionError(f"--balance: expected low <= high, found {self.balance[0]} {self.balance[1]}")


def _settings(
    arguments: CandidateArguments, data: Any, book: Any, selector_name: str | None, skipping: Skipping
) -> dict:
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
        **{name: getattr(arguments, name) for name in (*options_of(ProposalSettings), *OTHER_OPTIONS)},
    }


def _check_options(arguments: CandidateArguments) -> None:
    """Raises `RecordError` for options that do not go together."""
    users = {"--selector": arguments.selector, "--num_retrieval above 0": arguments.num_retrieval}
    needing = [name for name, used in users.items() if used]
    problems = []
    if needing and (arguments.query_table is None or arguments.example_table is None):
        problems.append(f"--query_table and --example_table are needed by {' and by '.join(needing)}")
    if not (needing or arguments.num_random or arguments.beams):
        problems.append("nothing to make: give --selector, --beams, --num_retrieval or --num_random")
    if arguments.gt_prob and is_server(arguments.model):
        problems.append(
            "--gt_prob needs the probabilities of given answers, which a server does not tell; load the VLM"
        )
    if problems:
        raise RecordError(problems)


def make_candidates(arguments: CandidateArguments) -> None:
    """Reads and checks everything, makes what is missing, and merges."""
    from rollouts.example_selection.data import load_selection_data, load_tables

    _check_options(arguments)
    server = arguments.server()
    examples = (arguments.dataset_name, arguments.split)
    queries = (arguments.queries, arguments.queries_split) if arguments.queries else examples
    shots = max(arguments.shots)
    skipping = Skipping(arguments.skip_unreadable)
    data = load_selection_data(
        queries, examples, arguments.pools, shots, only_pooled=True, limit=arguments.limit, skipping=skipping
    )
    tables: Any = None
    if arguments.query_table is not None and arguments.example_table is not None:
        tables = load_tables(arguments.query_table, arguments.example_table, data)
    given = {} if arguments.beams is None else _load_given(arguments.beams, data, skipping)

    from rollouts.example_selection.scored_candidates import CandidateMaker
    from rollouts.example_selection.selection_methods import load_fitting_selector
    from rollouts.frozen_vlm.answers import open_answer_book

    device = arguments.device or process_state().device
    selector_name, selector = None, None
    if arguments.selector:
        selector_name, selector = load_fitting_selector(arguments.selector, tables, shots, device)
    work = arguments.work(arguments.output)
    answers = arguments.answer_folder(work / "answers", restart=arguments.restart and server is not None)
    book = open_answer_book(arguments, answers, server)
    maker = CandidateMaker(
        data,
        book,
        arguments,
        arguments.shots,
        tables,
        selector,
        given,
        arguments.construct_order,
        arguments.gt_prob,
        arguments.relevance,
    )
    _make_all(maker, work, _settings(arguments, data, book, selector_name, skipping), arguments, skipping)


def _make_all(maker: Any, work: Path, settings: dict, arguments: CandidateArguments, skipping: Skipping) -> None:
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
            least = 1e-12 if arguments.require_positive else 0.0
            _write_groups(merged, arguments.output, arguments.balance or (0.0, 1.0), least)
            asked, computed = (maker.book.counts[name] for name in ("asked", "computed"))
            print(f"{asked} answers and probabilities looked up, {computed} of them asked of the VLM in this run")


def _load_given(beams: Path, data: Any, skipping: Skipping) -> Any:
    from data.candidate_groups import load_groups
    from rollouts.example_selection.scored_candidates import given_candidates

    gone = skipping.ids("examples")
    groups = load_groups(beams, example_ids=data.examples.keys() | gone, check_files=False)
    return given_candidates(groups, str(beams), data, gone)


def _write_groups(merged: Path, output: Path, balance: tuple[float, float], least: float) -> None:
    """The groups of the merged rows that pass the filters, a line each; and a line on what they hold.

    Args:
        balance: range of the share of right candidates; `least`, which it reaches in any case.
    """
    from data.io.records import read_rows, write_jsonl
    from rollouts.example_selection.scored_candidates import share_of_positive

    groups = [group for _, row in read_rows(merged) for group in row["groups"]]
    shares = [share_of_positive(group) for group in groups]
    low, high = balance
    kept = [group for group, share in zip(groups, shares, strict=True) if low <= share <= high and share >= least]
    if not kept:
        raise RecordError(
            [f"{output}: none of {len(groups)} groups passes --balance and --require_positive; not written"]
        )
    write_jsonl(output, kept)
    total = sum(len(group["candidates"]) for group in kept)
    mean = sum(candidate["vqa_acc_score"] for group in kept for candidate in group["candidates"]) / total
    print(
        f"{len(kept)} of {len(groups)} groups written to {output}: {total} candidates, mean accuracy "
        f"{mean:.3f}, {100 * sum(map(share_of_positive, kept)) / len(kept):.1f}% right"
    )


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    make_candidates(parse_and_hold(CandidateArguments, argv))
    end_processes()


if __name__ == "__main__":
    main()
