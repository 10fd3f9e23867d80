"""How fast the pointer selector trains and makes candidates, beside the same arithmetic done the straightforward way.

    python benchmarks/selector.py
    python benchmarks/selector.py --quick

Both sides have the same weights and give the same numbers, which is checked first (log-probabilities and gradients;
beams). The straightforward side is benchmarks/naive_selector.py.

training     One step: log-probabilities of 5 sequences of 2 examples per query, RCE loss, backward, AdamW. 64
             candidates per query with embeddings of their own, of width 768; hidden size 256, one layer. The other
             side expands queries and candidates by the number of sequences. Targets: 4 times the pace at batch 32, 2
             at batch 1.
candidates   5 beams, 2 samples at each of 2 temperatures and 1 random sequence, of 2 examples, for 200 queries. The
             other side takes one query at a time and reads it again at every step. Targets: 12 times the pace with 64
             candidates per query, 10 with 1,000, both with embeddings of their own for every query, and 60 with 1,000
             drawn from one table of 5,000.

One process, one thread, times are its CPU time. Sides take turns; the ratio is taken within a round. The other side's
pace with 1,000 candidates is measured on fewer queries: it does not depend on their number. Ends with status 1 if a
target is missed.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py, which is not the package

import torch

from benchmarks.naive_selector import NaiveSelector
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from models.selectors.pointer import PointerSelector, PointerSelectorConfig

WIDTH, HIDDEN = 768, 256
SEQUENCES, SHOTS = 5, 2
TEMPERATURES, SAMPLES = (1.0, 1.3), 2
QUERIES, TABLE = 200, 5_000
TRAINING_TARGETS = {32: 4.0, 1: 2.0}


@dataclass(frozen=True)
class Batch:
    """Queries (B, d), examples (U, d) and pools (B, K), rows of the examples."""

    queries: torch.Tensor
    examples: torch.Tensor
    pools: torch.Tensor

    @classmethod
    def draw(cls, queries: int, candidates: int, table: int | None = None) -> "Batch":
        """Random unit vectors; pools drawn from a table of that many examples, or of examples of their own."""
        rows = table or queries * candidates
        if table is None:
            pools = torch.arange(rows).view(queries, candidates)
        else:
            pools = torch.stack([torch.randperm(table)[:candidates] for _ in range(queries)])
        return cls(_unit(queries), _unit(rows), pools)

    def own(self, query: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A query (d) and its candidates (K, d)."""
        return self.queries[query], self.examples[self.pools[query]]


def _unit(rows: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, WIDTH), dim=-1)


def _selector() -> PointerSelector:
    return PointerSelector(PointerSelectorConfig(embedding_size=WIDTH, hidden_size=HIDDEN))


def _pointers(queries: int, candidates: int) -> torch.Tensor:
    rows = [torch.randperm(candidates)[:SHOTS] for _ in range(queries * SEQUENCES)]
    return torch.stack(rows).view(queries, SEQUENCES, SHOTS)


# -- training ---------------------------------------------------------------------------------------------------------


def _rce(log_probs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    return -(rewards.softmax(-1) * log_probs).sum(-1).mean()


class TrainingPace:
    """A training step of either side on the same batch."""

    def __init__(self, queries: int, candidates: int = 64):
        torch.manual_seed(0)
        self.batch = Batch.draw(queries, candidates)
        self.pointers = _pointers(queries, candidates)
        self.rewards = torch.rand(queries, SEQUENCES)
        self.ours = _selector()
        self.naive = NaiveSelector(self.ours)
        self.candidates = self.batch.examples[self.batch.pools]
        models = (self.ours, self.naive)
        self.optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in models]

    def our_loss(self) -> torch.Tensor:
        output = self.ours(self.batch.queries, self.batch.examples, self.batch.pools, self.pointers)
        return _rce(output.log_probs.sum(-1), self.rewards)

    def naive_loss(self) -> torch.Tensor:
        return _rce(self.naive.log_probs(self.batch.queries, self.candidates, self.pointers), self.rewards)

    def check(self) -> None:
        """Equal losses and gradients."""
        ours, naive = self.our_loss(), self.naive_loss()
        torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-5)
        ours.backward()
        naive.backward()
        for name, parameter in self.naive.named_parameters():
            gradient = self.ours.get_parameter(name).grad
            torch.testing.assert_close(
                gradient, parameter.grad, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: n + text
            )

    def our_step(self) -> None:
        self._step(self.our_loss, self.optimizers[0])

    def naive_step(self) -> None:
        self._step(self.naive_loss, self.optimizers[1])

    @staticmethod
    def _step(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


# -- candidates -------------------------------------------------------------------------------------------------------


def make_candidates(selector: PointerSelector, batch: Batch, size: int) -> list[torch.Tensor]:
    """Per batch of `size` queries: pointers (B, 10, shots): beams, samples, one at random. Examples are read once."""
    shared = selector.encode_examples(batch.examples) if len(batch.examples) < batch.pools.numel() else None
    made = []
    with torch.no_grad():
        for start in range(0, len(batch.queries), size):
            pools = batch.pools[start : start + size]
            if shared is None:  # every query has examples of its own: rows of this batch alone
                low = int(pools.min())
                examples, pools = batch.examples[low : int(pools.max()) + 1], pools - low
            else:
                examples = shared
            encoded = selector.encode(batch.queries[start : start + size], examples, pools)
            parts = [selector.choose(encoded, SHOTS, "beam", num_beams=SEQUENCES).pointers]
            for temperature in TEMPERATURES:
                drawn = selector.choose(encoded, SHOTS, "sample", num_samples=SAMPLES, temperature=temperature)
                parts.append(drawn.pointers)
            parts.append(torch.rand(pools.shape).topk(SHOTS).indices.unsqueeze(1))
            made.append(torch.cat(parts, dim=1))
    return made


def make_candidates_naively(naive: NaiveSelector, batch: Batch, queries: int) -> list[list[list[int]]]:
    """Per query: pointers."""
    made = []
    for query in range(queries):
        embedding, candidates = batch.own(query)
        pointers = [pointer for pointer, _ in naive.beams(embedding, candidates, SHOTS, SEQUENCES)]
        for temperature in TEMPERATURES:
            pointers += [naive.sample(embedding, candidates, SHOTS, temperature) for _ in range(SAMPLES)]
        made.append([*pointers, torch.randperm(len(candidates))[:SHOTS].tolist()])
    return made


class CandidatePace:
    """Candidates for the same queries by either side."""

    def __init__(self, queries: int, candidates: int, table: int | None, naive_queries: int, size: int):
        torch.manual_seed(0)
        self.batch = Batch.draw(queries, candidates, table)
        self.ours = _selector().eval()
        self.naive = NaiveSelector(self.ours)
        self.naive_queries, self.size = min(queries, naive_queries), size

    def check(self) -> None:
        """Equal beams, and the same log-probability for what we sample."""
        batch, first = self.batch, slice(0, 4)
        inputs = (batch.queries[first], batch.examples, batch.pools[first], SHOTS)
        ours = self.ours.select(*inputs, method="beam", num_beams=SEQUENCES)
        drawn = self.ours.select(*inputs, method="sample", num_samples=SAMPLES, temperature=TEMPERATURES[-1])
        for query in range(first.stop):
            embedding, candidates = batch.own(query)
            beams = self.naive.beams(embedding, candidates, SHOTS, SEQUENCES)
            assert [pointer for pointer, _ in beams] == ours.pointers[query].tolist(), f"beams of query {query} differ"
            scores = torch.tensor([score for _, score in beams])
            torch.testing.assert_close(ours.log_probs[query], scores, rtol=0, atol=1e-4)
            with torch.no_grad():
                scores = self.naive.log_probs(embedding[None], candidates[None], drawn.pointers[query : query + 1])
            torch.testing.assert_close(drawn.log_probs[query], scores[0], rtol=0, atol=1e-4)

    def our_seconds(self) -> float:
        """A query."""
        return _seconds(lambda: make_candidates(self.ours, self.batch, self.size)) / len(self.batch.queries)

    def naive_seconds(self) -> float:
        return (
            _seconds(lambda: make_candidates_naively(self.naive, self.batch, self.naive_queries)) / self.naive_queries
        )


# -- the table --------------------------------------------------------------------------------------------------------


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _steps(work: Callable[[], None], count: int) -> float:
    """Seconds a step."""
    return _seconds(lambda: [work() for _ in range(count)]) / count


def _measure(name: str, target: float, ours: Callable, naive: Callable, rounds: int) -> bool:
    """Prints a line; whether the target is reached."""
    ours(), naive()
    pairs = [(ours(), naive()) for _ in range(rounds)]
    ratios = [slow / fast for fast, slow in pairs]
    median = statistics.median(ratios)
    fast, slow = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"| {name} | {fast:.3f} | {slow:.3f} | {median:.1f} | {min(ratios):.1f} to {max(ratios):.1f} | {target:g} |",
        flush=True,
    )
    return median >= target


@dataclass(kw_only=True)
class SelectorBenchmark:
    """How often."""

    rounds: int = option("how often everything is measured", 5, within=AT_LEAST_1)
    quick: bool = option("fewer queries and rounds: a look, no figures to quote", False)


def main() -> None:
    arguments = parse_arguments(SelectorBenchmark)
    torch.set_num_threads(1)
    rounds, queries = (3, 40) if arguments.quick else (arguments.rounds, QUERIES)
    print("| work | ms, ours | ms, straightforward | ratio | range | target |\n|---|---|---|---|---|---|")
    reached = []
    for size, target in TRAINING_TARGETS.items():
        pace = TrainingPace(size)
        pace.check()
        count = 10 if size > 1 else 100
        sides = [lambda step=step, count=count: _steps(step, count) for step in (pace.our_step, pace.naive_step)]
        reached.append(_measure(f"training step, batch {size}", target, *sides, rounds))
    settings = (
        ("64 candidates of its own", 12, {"candidates": 64, "table": None, "naive_queries": 40, "size": 100}),
        ("1,000 candidates of its own", 10, {"candidates": 1000, "table": None, "naive_queries": 8, "size": 8}),
        ("1,000 of a table of 5,000", 60, {"candidates": 1000, "table": TABLE, "naive_queries": 8, "size": 200}),
    )
    for name, target, setting in settings:
        pace = CandidatePace(queries, **setting)
        pace.check()
        name = f"candidates for a query, {name}"
        reached.append(_measure(name, target, pace.our_seconds, pace.naive_seconds, rounds))
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
