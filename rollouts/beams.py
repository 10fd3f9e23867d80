"""Beams: for each query, the sequences of examples that help a frozen VLM most, found by beam search.

    python -m rollouts.beams --pools outputs/pools.jsonl --dataset_name outputs/vqa --model outputs/vlm \\
        --output outputs/beams.jsonl
    accelerate launch -m rollouts.beams ...

An example is scored by what it adds. `info_gain`: the probability that the VLM gives to the query's answer with the
example, less that without it. `accuracy`: the same difference in VQA accuracy of the VLM's answer, ties broken by
`info_gain`. The largest gain wins, whatever its sign. A sequence's score is the sum of its steps' gains, which is its
own value less that of no examples; so beams are compared at one baseline.

Writes candidate groups (`data/candidate_groups.py`). Killed, it goes on where it was when started again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.candidates.pools import load_pools, pools_without
from data.cli.arguments import limit_option, option, rows_file_option, skip_unreadable_option, split_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1
from data.io.counts import counted
from data.io.digests import rows_digest
from data.io.images import ImageSource
from data.io.records import RecordError
from data.io.shards import KeptWorkArguments, ShardStore, end_processes
from data.io.unreadable import Skipping
from data.reports.pool import ItemId
from data.vqa import VqaRecord, common_answer, load_records, problem_of_scoring, record_ids
from rollouts.frozen_vlm.arguments import VLMArguments, generation_options, load_in_context_vlm

SCORERS = ("info_gain", "accuracy")
DEFAULT_CHUNK = 4


@dataclass(frozen=True)
class Query:
    """A query and what can be shown with it.

    Attributes:
        id: of the query.
        record: whose most common answer the VLM should give.
        pool_ids, pool: the candidates, at least as many as there are shots.
    """

    id: ItemId
    record: VqaRecord
    pool_ids: list[ItemId]
    pool: list[VqaRecord]


@dataclass(frozen=True)
class Value:
    """How well the VLM does with some examples.

    Attributes:
        score: what gains are differences of: a probability, or an accuracy.
        tie: decides between equal scores.
        text: what the VLM wrote, if it was asked to.
    """

    score: float
    tie: float = 0.0
    text: str | None = None


@dataclass(frozen=True)
class Beam:
    """Examples in the order of selection.

    Attributes:
        places: in the query's pool.
        values: with no example, with the first, with the first two, ...
    """

    places: tuple[int, ...]
    values: tuple[Value, ...]

    @property
    def score(self) -> float:
        """The sum of all gains."""
        return self.values[-1].score - self.values[0].score

    @property
    def step_scores(self) -> list[float]:
        """The gain of each step."""
        return [after.score - before.score for before, after in zip(self.values, self.values[1:], strict=False)]

    def order(self) -> tuple:
        """Sorts beams best first; equal ones by their places in the pool."""
        return (-self.values[-1].score, -self.values[-1].tie, self.places)


class Scorer:
    """Values of shown examples, many at a time.

    Args:
        vlm: a `rollouts.frozen_vlm.engine.InContextVLM`.
        name: of `SCORERS`.
        construct_order: "left" or "right"; see `rollouts.frozen_vlm.requests.shown_order`.
        generation: arguments of `InContextVLM.generate`, for `accuracy`.
    """

    def __init__(self, vlm: Any, name: str, construct_order: str = "left", generation: dict | None = None):
        if name not in SCORERS:
            raise ValueError(f"scorer: expected one of {', '.join(SCORERS)}, found {name!r}")
        self.vlm = vlm
        self.name = name
        self.construct_order = construct_order
        self.generation = generation or {}

    def __call__(self, sequences: Sequence[tuple[Query, tuple[int, ...]]]) -> list[Value]:
        """The value of each (query, places of its examples in the order of selection)."""
        from rollouts.frozen_vlm.requests import InContextRequest, shown_order

        requests = [
            InContextRequest(
                query.record,
                tuple(query.pool[place] for place in shown_order(places, self.construct_order)),
                common_answer(query.record),
            )
            for query, places in sequences
        ]
        probabilities = self.vlm.answer_probabilities(requests)
        if self.name == "info_gain":
            return [Value(probability) for probability in probabilities]
        texts = self.vlm.generate(requests, **self.generation)
        return [
            Value(self._accuracy(text, request.query), probability, text)
            for text, request, probability in zip(texts, requests, probabilities, strict=True)
        ]

    def _accuracy(self, text: str, query: VqaRecord) -> float:
        from rewards.vqa_accuracy import vqa_accuracy

        return vqa_accuracy(self.vlm.first_answer(text), query.answers)


def search(queries: Sequence[Query], scorer: Scorer, beam_size: int, shots: int) -> list[list[Beam]]:
    """The best `beam_size` sequences of `shots` different examples for each query, best first.

    At each step every beam is continued with each candidate that it does not have, and the best of all are kept.
    """
    values = scorer([(query, ()) for query in queries])
    beams = [[Beam((), (value,))] for value in values]
    for _ in range(shots):
        longer = [
            [
                (beam, (*beam.places, place))
                for beam in kept
                for place in range(len(query.pool))
                if place not in beam.places
            ]
            for query, kept in zip(queries, beams, strict=True)
        ]
        found = iter(
            scorer([(query, places) for query, pairs in zip(queries, longer, strict=True) for _, places in pairs])
        )
        beams = [
            sorted((Beam(places, (*beam.values, next(found))) for beam, places in pairs), key=Beam.order)[:beam_size]
            for pairs in longer
        ]
    return beams


def beam_group(query: Query, beams: Sequence[Beam], scorer: Scorer) -> dict:
    """The row of a query; see `data/candidate_groups.py`. `zero_shot_score` is the baseline of its scores."""
    candidates = []
    for rank, beam in enumerate(beams):
        candidate = {
            "pointer": [query.pool_ids[place] for place in beam.places],
            "gen_method": "beam",
            "beam_rank": rank,
            "beam_score": beam.score,
            "step_scores": beam.step_scores,
        }
        last = beam.values[-1]
        if last.text is not None:
            candidate |= {
                "vqa_raw_generation": last.text,
                "vqa_pred_answer": scorer.vlm.first_answer(last.text),
                "vqa_correct": int(last.score > 0),
                "vqa_acc_score": last.score,
            }
        candidates.append(candidate)
    return {
        "id": query.id,
        "shots": len(beams[0].places),
        "question": query.record.question,
        "answers": query.record.answers,
        "pool": query.pool_ids,
        "scorer": scorer.name,
        "zero_shot_score": beams[0].values[0].score,
        "candidates": candidates,
    }


@dataclass(kw_only=True)
class BeamArguments(VLMArguments, KeptWorkArguments):
    """Of which queries, and how beams are searched."""

    pools: Path = option("candidate pools: JSONL of rollouts.pools")
    dataset_name: str = option("VQA records of the examples, and of the queries", old=("dataset",))
    split: str = split_option("train")
    queries: str | None = option("VQA records of the queries, where they are not those of dataset_name", None)
    queries_split: str = option("split of queries", "validation")
    scorer: str = option("what an example adds", "info_gain", choices=SCORERS)
    beam_size: int = option("sequences kept for each query", 5, within=AT_LEAST_1)
    shots: int = option("examples of a sequence", 2, within=AT_LEAST_1)
    limit: int | None = limit_option("pools")
    chunk_size: int = option("queries at once", DEFAULT_CHUNK, within=AT_LEAST_1)
    output: Path = rows_file_option("JSONL file of candidate groups")
    skip_unreadable: bool = skip_unreadable_option()


def read_queries(arguments: BeamArguments, skipping: Skipping) -> list[Query]:
    """The queries of the pools' file, in its order, without those that `skipping` leaves out.

    Raises:
        RecordError: lists every problem of the files, and every query that cannot be worked on.
    """
    examples = load_records(arguments.dataset_name, arguments.split, left_out=skipping.of("examples"))
    by_id = dict(zip(record_ids(examples), examples, strict=True))
    queries_by_id, same = by_id, arguments.queries is None
    if arguments.queries is not None:
        queries = load_records(arguments.queries, arguments.queries_split, left_out=skipping.of("queries"))
        queries_by_id = dict(zip(record_ids(queries), queries, strict=True))
    skipping.report()
    gone = skipping.ids("examples")
    pools = dict(list(load_pools(arguments.pools, by_id.keys() | gone).items())[: arguments.limit])
    pools = pools_without(pools, gone if same else skipping.ids("queries"), gone)
    if not pools:
        raise RecordError([f"{arguments.pools}: no query is left whose images can be read"])
    problems, found = [], []
    for query_id, pool in pools.items():
        where = f"{arguments.pools}: query {query_id!r}"
        record = queries_by_id.get(query_id)
        if record is None:
            problems.append(f"{where}: field 'query_id': expected the id of a query, found none such in the data set")
            continue
        if len(pool) < arguments.shots:
            problems.append(f"{where}: field 'pool': expected at least {arguments.shots} ids, found {len(pool)}")
        if same and query_id in pool:
            problems.append(f"{where}: field 'pool': expected other examples than the query, found the query itself")
        if not common_answer(record).strip():
            problems.append(f"{where}: field 'answers': expected a most common answer to score, found an empty one")
        problem = problem_of_scoring(record)
        if problem is not None:
            problems.append(f"{where}: {problem}")
        found.append(Query(query_id, record, pool, [by_id[item] for item in pool]))
    if problems:
        raise RecordError(problems)
    return found


def _digest(queries: Sequence[Query]) -> str:
    """Of all that the queries hold; of images, their content."""
    return rows_digest(
        {"id": item, "question": record.question, "answers": record.answers, "images": record.images}
        for query in queries
        for item, record in zip((query.id, *query.pool_ids), (query.record, *query.pool), strict=True)
    )


_WHERE_THINGS_ARE = (
    *("pools", "dataset_name", "split", "queries", "queries_split", "limit"),
    *("output", "work_dir", "restart", "skip_unreadable", "device"),
)


def shard_settings(arguments: BeamArguments, queries: Sequence[Query], skipping: Skipping) -> dict:
    """What the rows depend on."""
    from models.run_folders import model_fingerprint

    settings = {key: value for key, value in vars(arguments).items() if key not in _WHERE_THINGS_ARE}
    found = {"model": model_fingerprint(arguments.model), "queries": _digest(queries)}
    return {**settings, **found, "left_out": skipping.positions()}


def images_of(queries: Sequence[Query]) -> Iterator[ImageSource]:
    """All images, those of a query and its pool together."""
    for query in queries:
        for record in (query.record, *query.pool):
            yield from record.images


def load_scorer(arguments: BeamArguments, queries: Sequence[Query]) -> Scorer:
    """The VLM on this process's device, with the images of all queries prepared, and how it scores."""
    vlm = load_in_context_vlm(arguments)
    vlm.images.prepare(images_of(queries))
    return Scorer(vlm, arguments.scorer, arguments.construct_order, generation_options(arguments))


def make_beams(arguments: BeamArguments) -> int:
    """Searches, and writes the file; returns the number of groups."""
    skipping = Skipping(arguments.skip_unreadable)
    queries = {query.id: query for query in read_queries(arguments, skipping)}
    settings = shard_settings(arguments, list(queries.values()), skipping)
    with ShardStore(arguments.work(arguments.output), settings, restart=arguments.restart) as store:
        complete = store.done.issuperset(queries)
        scorer: Any = None if complete else load_scorer(arguments, list(queries.values()))

        def groups_of(chunk: list[ItemId]) -> Iterator[dict]:
            members = [queries[query_id] for query_id in chunk]
            found = search(members, scorer, arguments.beam_size, arguments.shots)
            return (beam_group(query, beams, scorer) for query, beams in zip(members, found, strict=True))

        store.fill(arguments.output, list(queries), groups_of, arguments.chunk_size, unit="query")
        if store.is_main:
            skipping.write(arguments.output)
            print(f"{counted(len(queries), 'group')} written to {arguments.output}")
    return len(queries)


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    make_beams(parse_and_hold(BeamArguments, argv))
    end_processes()


if __name__ == "__main__":
    main()
