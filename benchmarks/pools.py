"""Time and memory of candidate pools for a data set of the size of VQAv2, and whether the results are exact.

    python benchmarks/pools.py
    python benchmarks/pools.py --rows 443757 --dim 512 --only text_similarity

Random unit vectors stand for the embeddings of texts and of images (what an encoder takes, depends on the encoder).
For each sampler, a process of its own makes the vectors, draws anchors and makes their pools. The seconds are those of
drawing and making; the peak memory is that of the whole process, beside what the vectors alone take. Pools of some
anchors are then compared with those of a full ranking by numpy in float64. Ends with status 1 if any pool differs.
"""

import multiprocessing
import os
import platform
import random
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is called like a module that it measures

import numpy as np

from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_0, AT_LEAST_1
from rollouts.pools import (
    DEFAULT_MIX,
    IMAGE,
    IMAGE_TEXT,
    MIX,
    RANDOM,
    SAMPLERS,
    TEXT,
    Sampler,
    mix_counts,
    parse_mix,
    sample_anchors,
)

VQAV2_QUESTIONS = 443_757
MIB = 1024**2


@dataclass(frozen=True)
class Result:
    """What one sampler took, in seconds and bytes, and which of the checked anchors have another pool than numpy's."""

    sampler: str
    seconds: float
    vectors: int
    peak: int
    checked: int
    differing: list[int]

    def line(self) -> str:
        outcome = f"{self.checked} of {self.checked} equal" if not self.differing else f"**{self.differing} differ**"
        peak, own = self.peak / MIB, self.vectors / MIB
        return f"| {self.sampler} | {self.seconds:.1f} | {peak:,.0f} | {own:,.0f} | {outcome} |"


def peak_memory() -> int:
    """Most memory that this process ever held, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    """float32 (rows, dim), rows of length 1; no copy is made."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    vectors /= lengths[:, None]
    return vectors


def full_ranking(vectors: list[np.ndarray], weights: list[float], row: int) -> np.ndarray:
    """All other rows, most similar first, ties by row; block by block in float64."""
    scores = np.zeros(len(vectors[0]))
    for part, weight in zip(vectors, weights, strict=True):
        query = part[row].astype(np.float64)
        for start in range(0, len(part), 8192):
            block = part[start : start + 8192].astype(np.float64)
            scores[start : start + len(block)] += weight * (block * query).sum(axis=1)
    order = np.argsort(-scores, kind="stable")
    return order[order != row]


def is_exact(name: str, pool: list[int], images: np.ndarray, texts: np.ndarray, row: int, drawn: list[int]) -> bool:
    """Whether a pool is that of a full ranking; of a mix, whether it starts with its parts' and is filled up.

    Args:
        drawn: the random pool of the same anchor, of which a mix has the first part.
    """
    size = len(pool)
    if len(set(pool)) != size or row in pool:
        return False
    if name == RANDOM:
        return pool == drawn
    if name == IMAGE_TEXT:
        return pool == full_ranking([images, texts], [0.5, 0.5], row)[:size].tolist()
    if name != MIX:
        return pool == full_ranking([texts if name == TEXT else images], [1.0], row)[:size].tolist()
    counts = mix_counts(parse_mix(DEFAULT_MIX), size)
    image, text = (full_ranking([vectors], [1.0], row)[:size].tolist() for vectors in (images, texts))
    parts = dict.fromkeys([*drawn[: counts[RANDOM]], *image[: counts[IMAGE]], *text[: counts[TEXT]]])
    return pool[: len(parts)] == list(parts) and set(pool[len(parts) :]) <= {*image, *text}


def plain_random_pools(rows: int, size: int, anchors: list[int], seed: int) -> list[list[int]]:
    """One generator; a pool with its anchor in it is drawn anew."""
    rng = random.Random(seed)
    pools = []
    for anchor in anchors:
        pool = rng.sample(range(rows), size)
        while anchor in pool:
            pool = rng.sample(range(rows), size)
        pools.append(pool)
    return pools


@dataclass(kw_only=True)
class PoolBenchmark:
    """How large the data set and its pools are."""

    rows: int = option("examples; by default those of VQAv2", VQAV2_QUESTIONS, within=AT_LEAST_1)
    dim: int = option("of the embeddings of texts and of images", 512, within=AT_LEAST_1)
    anchors: int = option("queries that pools are made for", 5000, within=AT_LEAST_1)
    pool_size: int = option("candidates of a query", 64, within=AT_LEAST_1)
    check: int = option("anchors compared with numpy", 25, within=AT_LEAST_1)
    only: str | None = option("one sampler", None, choices=SAMPLERS)
    seed: int = option("of vectors and pools", 42, within=AT_LEAST_0)


def measure(name: str, arguments: PoolBenchmark) -> Result:
    """Makes vectors and pools in this process, and compares some with a full ranking."""
    rows, size = arguments.rows, arguments.pool_size
    needed = {RANDOM: (), TEXT: (TEXT,), IMAGE: (IMAGE,)}.get(name, (IMAGE, TEXT))
    tables = {kind: unit_vectors(rows, arguments.dim, seed=number) for number, kind in enumerate(needed)}
    held = sum(table.nbytes for table in tables.values())
    start = time.perf_counter()
    anchors = sample_anchors(rows, arguments.anchors, arguments.seed)
    names = {TEXT: "text", IMAGE: "image"}
    vectors = {names[kind]: (table[anchors], table) for kind, table in tables.items()}
    pools = Sampler(rows, [[anchor] for anchor in anchors], vectors).pools(name, size, arguments.seed)
    seconds, peak = time.perf_counter() - start, peak_memory()

    drawn_size = size if name == RANDOM else mix_counts(parse_mix(DEFAULT_MIX), size)[RANDOM]
    drawn = plain_random_pools(rows, drawn_size, anchors, arguments.seed)
    checked = (
        range(len(anchors)) if name == RANDOM else range(0, len(anchors), max(1, len(anchors) // arguments.check))
    )
    differing = [
        anchors[number]
        for number in checked
        if not is_exact(
            name, pools[number].tolist(), tables.get(IMAGE), tables.get(TEXT), anchors[number], drawn[number]
        )
    ]
    return Result(name, seconds, held, peak, len(checked), differing)


def _report(connection, name: str, arguments: PoolBenchmark) -> None:
    connection.send(measure(name, arguments))


def measure_apart(name: str, arguments: PoolBenchmark) -> Result:
    """In a new process, so that its memory is its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, name, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        sys.exit(f"error: {name}: the process ended without a result")
    finally:
        process.join()


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(PoolBenchmark, argv)
    print(
        f"{arguments.rows:,} examples, {arguments.dim} numbers each, {arguments.anchors:,} anchors, "
        f"{arguments.pool_size} candidates; {os.cpu_count()} cores, {platform.processor() or platform.machine()}\n"
    )
    print("| sampler | seconds | peak memory, MiB | of it vectors, MiB | pools compared with numpy |")
    print("|---|---|---|---|---|")
    differing = []
    for name in [arguments.only] if arguments.only else SAMPLERS:
        result = measure_apart(name, arguments)
        print(result.line(), flush=True)
        differing += result.differing
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    main()
