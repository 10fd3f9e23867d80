"""What every example selector shares: scoring given choices, and choosing one example after the other.

A selector reads a query and a pool of examples, and chooses examples one by one without repeating any. A subclass of
`Selector` says how it reads its inputs (`encode`), what it carries from step to step (`start`, `advance`), and how
much it likes each example of the pool (`raw_logits`). Masks, log-probabilities, greedy, beam and sampled choice are
written once, here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from models.selectors.config import SelectorConfig
from models.selectors.pool_batches import Pools, PoolTable, read_pools

METHODS = ("greedy", "beam", "sample")
CHOSEN_LOGIT = -100.0
"""Logit of an example that has been chosen before (that of the earlier system, whose checkpoints are imported)."""
CHOSEN_MARGIN = 50.0
"""A chosen example is at least this much below every other: its probability vanishes in float32 (exp(-50) = 2e-22)."""

State = dict[str, torch.Tensor]
"""What a selector carries from step to step: tensors (B, G, ...), one row per sequence under way."""


@dataclass
class PointerOutput(ModelOutput):
    """What a selector thinks of given choices.

    B queries, G sequences each, T steps: the number of examples of the longest sequence, and one more in a model that
    chooses when to stop.

    Attributes:
        log_probs: (B, G, T), in nats, at most 0; 0 where `mask` is False.
        cross_entropy: (B, G, T), in nats, with label smoothing; 0 where `mask` is False.
        mask: (B, G, T), True at the steps that the sequence took.
        logits: (B, G, T, K), or (B, G, T, K + 1) with STOP last; -inf for padding and where STOP is not on offer.
    """

    log_probs: torch.Tensor | None = None
    cross_entropy: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass
class Selections(ModelOutput):
    """What a selector chose.

    Attributes:
        pointers: (B, n, shots), positions in the query's pool in the order of choice; -1 after STOP, and in all
            positions of a beam that does not exist (a pool has fewer sequences than beams were asked for).
        log_probs: (B, n), in nats: of the sequence under the model itself, whatever temperature it was drawn with;
            the sum of `PointerOutput.log_probs` for the same pointers. -inf for a beam that does not exist.
    """

    pointers: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None


@dataclass
class EncodedExamples:
    """A table of examples as a selector has read them.

    Attributes:
        keys: (U, hidden), what each example is known by; of length 1.
    """

    keys: torch.Tensor


@dataclass
class Encoded:
    """Queries, pools and examples as a selector has read them; any number of choices can be made from them.

    Attributes:
        pools: which examples each query may choose.
        queries: (B, hidden).
        examples: what `encode_examples` gave.
        keys: products with the keys of each pool's examples.
        first: (B, 1, K or K + 1), logits of the first choice, once a choice has been made.
    """

    pools: Pools
    queries: torch.Tensor
    examples: EncodedExamples
    keys: PoolTable
    first: torch.Tensor | None = None

    def key_rows(self, picks: torch.Tensor) -> torch.Tensor:
        """(B, ...) positions in the pool -> (B, ..., hidden) keys."""
        rows = self.pools.rows.gather(1, picks.flatten(1)).view_as(picks)
        return F.embedding(rows, self.examples.keys)


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def _check_pointers(pointers: torch.Tensor, pools: Pools, max_shots: int | None) -> None:
    if pointers.dim() != 3 or pointers.is_floating_point() or len(pointers) != len(pools.rows):
        found = f"{pointers.dtype} {_shape(pointers)}"
        raise ValueError(f"pointers: expected whole numbers ({len(pools.rows)}, sequences, shots), found {found}")
    if max_shots is not None and pointers.shape[2] > max_shots:
        raise ValueError(f"pointers: expected at most max_shots = {max_shots} examples, found {pointers.shape[2]}")
    width = pools.rows.shape[1]
    # -1 is the last entry of this: a place that sequences may always name. So is what lies outside: told apart below.
    allowed = F.pad(pools.valid, (0, 1), value=True)
    inside = torch.where((pointers < width) & (pointers >= 0), pointers, width)
    wrong = ~allowed.gather(1, inside.flatten(1)).view_as(pointers) | (pointers >= width) | (pointers < -1)
    gap = (pointers[..., 1:] >= 0) & (pointers[..., :-1] < 0)
    if bool(wrong.any() | gap.any()):
        gap = F.pad(gap, (1, 0))
        query, sequence, step = (wrong | gap).nonzero()[0].tolist()
        found = int(pointers[query, sequence, step])
        why = "is outside of the pool" if wrong[query, sequence, step] else "comes after -1"
        raise ValueError(f"pointers: query {query}, sequence {sequence}, step {step}: {found} {why}")


def chosen_before(pointers: torch.Tensor, width: int, steps: int) -> torch.Tensor:
    """(B, G, steps, width): which positions of the pool were chosen before each step. `pointers` is (B, G, S)."""
    picked = pointers.unsqueeze(-1) == torch.arange(width, device=pointers.device)  # (B, G, S, K)
    before = [torch.zeros_like(picked[:, :, 0])]
    for step in range(steps - 1):
        before.append(before[-1] | picked[:, :, step])
    return torch.stack(before, dim=2)


class Selector(PreTrainedModel, ABC):
    """A model that chooses examples from a pool, one after the other.

    Subclasses give `encode_examples`, `encode`, `start`, `advance` and `raw_logits`, and may replace
    `teacher_logits` by something faster that gives the same.
    """

    config_class = SelectorConfig
    base_model_prefix = ""
    main_input_name = "query_embeddings"

    @property
    def shot_limit(self) -> int | None:
        """The most examples that the model can choose; `None` if there is no limit."""
        return self.config.max_shots if self.config.stop else None

    @abstractmethod
    def encode_examples(self, example_embeddings: torch.Tensor) -> EncodedExamples:
        """What depends on the examples alone, from (U, d). Made once, it serves any number of calls to `encode`."""

    @abstractmethod
    def encode(
        self, query_embeddings: torch.Tensor, examples: torch.Tensor | EncodedExamples, pools: torch.Tensor
    ) -> Encoded:
        """Reads a batch once, for any number of choices.

        Args:
            query_embeddings: (B, d).
            examples: (U, d), or what `encode_examples` made of it.
            pools: (B, K), rows of the examples; -1 is padding.
        """

    def read_batch(
        self, query_embeddings: torch.Tensor, examples: torch.Tensor | EncodedExamples, pools: torch.Tensor
    ) -> tuple[EncodedExamples, Pools]:
        """Examples, encoded if they are not yet, and pools; both checked."""
        self.check_width("query_embeddings", query_embeddings)
        if isinstance(examples, torch.Tensor):
            self.check_width("example_embeddings", examples)
            examples = self.encode_examples(examples)
        pools = read_pools(pools, len(examples.keys))
        if len(query_embeddings) != len(pools.rows):
            raise ValueError(
                f"pools: expected one for each of {len(query_embeddings)} queries, found {len(pools.rows)}"
            )
        return examples, pools

    def check_width(self, name: str, embeddings: torch.Tensor) -> None:
        width = self.config.embedding_size
        if embeddings.dim() != 2 or embeddings.shape[1] != width:
            raise ValueError(f"{name}: expected (rows, embedding_size = {width}), found {_shape(embeddings)}")

    @abstractmethod
    def start(self, encoded: Encoded) -> State:
        """The state before the first choice, with G = 1."""

    @abstractmethod
    def advance(self, encoded: Encoded, state: State, picks: torch.Tensor) -> State:
        """The state after choosing positions `picks` (B, G)."""

    @abstractmethod
    def raw_logits(self, encoded: Encoded, state: State, step: int) -> torch.Tensor:
        """(B, G, K), or (B, G, K + 1) with STOP last, before any mask."""

    def teacher_logits(self, encoded: Encoded, pointers: torch.Tensor, steps: int) -> torch.Tensor:
        """(B, G, steps, K or K + 1): `raw_logits` along given choices (B, G, S)."""
        parents = torch.zeros_like(pointers[:, :, 0])
        state = follow(self.start(encoded), parents)
        logits = []
        for step in range(steps):
            logits.append(self.raw_logits(encoded, state, step))
            if step < steps - 1:
                state = self.advance(encoded, state, pointers[:, :, step].clamp(min=0))
        return torch.stack(logits, dim=2)

    def forward(
        self,
        query_embeddings: torch.Tensor,
        example_embeddings: torch.Tensor,
        pools: torch.Tensor,
        pointers: torch.Tensor,
        label_smoothing: float = 0.0,
        return_logits: bool = False,
    ) -> PointerOutput:
        """Log-probabilities of given choices.

        Args:
            query_embeddings: (B, d).
            example_embeddings: (U, d), every example of the batch once.
            pools: (B, K), rows of `example_embeddings`; -1 is padding.
            pointers: (B, G, S), positions in the pool in the order of choice; -1 is padding, at the end of a sequence
                or for all of it. A repeated position is scored with the logit of a chosen one.
            label_smoothing: share of the target that is spread over the pool, as in
                `torch.nn.functional.cross_entropy`.

        Raises:
            ValueError: pools or pointers that do not fit, naming the query's row in the batch.
        """
        encoded = self.encode(query_embeddings, example_embeddings, pools)
        return self.score(encoded, pointers, label_smoothing, return_logits)

    def score(
        self, encoded: Encoded, pointers: torch.Tensor, label_smoothing: float = 0.0, return_logits: bool = False
    ) -> PointerOutput:
        """`forward` for inputs that `encode` has read."""
        stop = self.config.stop
        _check_pointers(pointers, encoded.pools, self.shot_limit)
        width, steps = encoded.pools.rows.shape[1], pointers.shape[2] + stop
        lengths = (pointers >= 0).sum(-1, keepdim=True)  # (B, G, 1)
        position = torch.arange(steps, device=pointers.device)
        targets = pointers.clamp(min=0)
        mask = position < lengths
        if stop:
            targets = F.pad(targets, (0, 1)).where(position < lengths, width)
            mask = mask | ((position == lengths) & (lengths > 0) & (lengths < self.config.max_shots))
        on_offer = encoded.pools.valid[:, None, None, :].expand(*pointers.shape[:2], steps, width)
        chosen = chosen_before(pointers, width, steps)
        if stop:
            on_offer = torch.cat([on_offer, (position > 0).expand(*pointers.shape[:2], steps)[..., None]], dim=-1)
            chosen = F.pad(chosen, (0, 1))
        logits = mask_logits(self.teacher_logits(encoded, pointers, steps), chosen, on_offer)
        distribution = logits.log_softmax(-1)
        log_probs = distribution.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        # A padded step's target may be off offer (-inf), whose gradient would be NaN if it were multiplied by 0.
        log_probs = log_probs.masked_fill(~mask, 0.0)
        cross_entropy = -log_probs
        if label_smoothing:
            spread = -distribution.masked_fill(~on_offer, 0.0).sum(-1) / on_offer.sum(-1)
            smooth = (1 - label_smoothing) * cross_entropy + label_smoothing * spread
            cross_entropy = smooth.masked_fill(~mask, 0.0)
        return PointerOutput(log_probs, cross_entropy, mask, logits if return_logits else None)

    def select(
        self,
        query_embeddings: torch.Tensor,
        example_embeddings: torch.Tensor,
        pools: torch.Tensor,
        shots: int,
        **search: Any,
    ) -> Selections:
        """Chooses `shots` examples for each query; fewer where the model chooses to stop.

        Args:
            query_embeddings, example_embeddings, pools: as for `forward`.
            search: how, as for `choose`.

        Raises:
            ValueError: see `choose`.
        """
        with torch.no_grad():
            encoded = self.encode(query_embeddings, example_embeddings, pools)
        return self.choose(encoded, shots, **search)

    @torch.no_grad()
    def choose(
        self,
        encoded: Encoded,
        shots: int,
        method: str = "greedy",
        num_beams: int = 5,
        num_samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Selections:
        """`select` for inputs that `encode` has read.

        Args:
            method: `greedy` takes the best example at each step (n = 1); `beam` gives the `num_beams` best sequences
                that a beam search finds (n = num_beams), best first; `sample` draws `num_samples` sequences.
            temperature: of `sample`: logits are divided by it.
            generator: of `sample`.

        Raises:
            ValueError: more shots than some query has candidates, or than the model's `max_shots` if it can stop.
        """
        self._check_choice(encoded, shots, method, num_beams, num_samples, temperature)
        breadth = {"greedy": 1, "beam": num_beams, "sample": num_samples}[method]
        search = _Search(self, encoded)
        for step in range(shots):
            last = step == shots - 1 and not self.config.stop
            log_probs, logits = search.step(step)
            if method == "beam":
                search.extend(*_best(search.totals, log_probs, breadth), last)
            else:
                parents = torch.arange(breadth, device=log_probs.device).expand(len(log_probs), -1)
                parents = parents if step else torch.zeros_like(parents)
                offers = take(logits, parents)
                if method == "greedy":
                    picks = offers.argmax(-1)
                else:
                    probs = (offers / temperature).softmax(-1).flatten(0, 1)
                    picks = torch.multinomial(probs, 1, generator=generator).view(parents.shape)
                gained = take(log_probs, parents).gather(-1, picks.unsqueeze(-1)).squeeze(-1)
                search.extend(parents, picks, take(search.totals, parents) + gained, last)
        return search.finish(shots, ranked=method == "beam")

    def _check_choice(self, encoded, shots, method, num_beams, num_samples, temperature) -> None:
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, found {method!r}")
        for name, value in (("shots", shots), ("num_beams", num_beams), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        if temperature <= 0:
            raise ValueError(f"temperature: expected more than 0, found {temperature}")
        if self.shot_limit is not None and shots > self.shot_limit:
            raise ValueError(f"shots: expected at most max_shots = {self.shot_limit}, found {shots}")
        short = encoded.pools.sizes < shots
        if bool(short.any()):
            query = int(short.nonzero()[0])
            size = int(encoded.pools.sizes[query])
            raise ValueError(f"shots: query {query} has {size} candidates, which is fewer than {shots} shots")


def take(tensor: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """Rows `parents` (B, G') of the second dimension of (B, G, ...)."""
    index = parents.view(*parents.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:])
    return tensor.gather(1, index)


def follow(state: State, parents: torch.Tensor) -> State:
    """The state whose sequence g continues sequence `parents[b, g]`."""
    return {name: take(tensor, parents) for name, tensor in state.items()}


def mask_logits(logits: torch.Tensor, chosen: torch.Tensor, on_offer: torch.Tensor) -> torch.Tensor:
    """Float32 logits with -inf off offer, and far below all others for what is chosen already."""
    logits = logits.float().masked_fill(~on_offer, float("-inf"))
    lowest = logits.detach().masked_fill(chosen | ~on_offer, float("inf")).amin(-1, keepdim=True)
    floor = (lowest - CHOSEN_MARGIN).clamp(max=CHOSEN_LOGIT)
    return torch.where(chosen & on_offer, floor, logits)


def _best(totals: torch.Tensor, log_probs: torch.Tensor, beams: int) -> tuple[torch.Tensor, ...]:
    """Parents, picks and totals of the best continuations; beams that do not exist have a total of -inf."""
    width = log_probs.shape[-1]
    flat = (totals.unsqueeze(-1) + log_probs).flatten(1)  # (B, G * K)
    best, index = flat.topk(min(beams, flat.shape[1]), dim=-1)
    missing = beams - best.shape[1]
    best, index = F.pad(best, (0, missing), value=float("-inf")), F.pad(index, (0, missing))
    return index // width, index % width, best


class _Search:
    """Sequences under way: (B, G) of them, all of them with the same number of steps."""

    def __init__(self, model: Selector, encoded: Encoded):
        self.model, self.encoded = model, encoded
        valid = encoded.pools.valid
        self.width = valid.shape[1]
        self.stop = model.config.stop
        self.state = model.start(encoded)
        self.chosen = torch.zeros_like(valid).unsqueeze(1)  # (B, 1, K)
        self.done = torch.zeros_like(self.chosen[..., 0])  # (B, 1)
        self.pointers = torch.empty(*self.done.shape, 0, dtype=torch.long, device=valid.device)
        self.totals = torch.zeros(self.done.shape, device=valid.device)

    def step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and logits (B, G, K or K + 1) of the next choice; a stopped sequence stays stopped."""
        free = self.encoded.pools.valid.unsqueeze(1) & ~self.chosen
        if self.stop:
            free = F.pad(free, (0, 1), value=step > 0)
            stopped = F.pad(torch.zeros_like(self.chosen), (0, 1), value=True)
            free = torch.where(self.done.unsqueeze(-1), stopped, free)
        if step == 0 and self.encoded.first is None:  # the same however the search goes on
            self.encoded.first = self.model.raw_logits(self.encoded, self.state, 0)
        logits = self.encoded.first if step == 0 else self.model.raw_logits(self.encoded, self.state, step)
        logits = logits.float().masked_fill(~free, float("-inf"))
        return logits.log_softmax(-1), logits

    def extend(self, parents: torch.Tensor, picks: torch.Tensor, totals: torch.Tensor, last: bool) -> None:
        """Continues sequences `parents` (B, G') by `picks` (B, G'); no step follows the last one."""
        stopped = picks == self.width
        picks = picks.masked_fill(stopped, 0)
        self.done, self.totals = stopped, totals
        self.pointers = torch.cat([take(self.pointers, parents), picks.masked_fill(stopped, -1)[..., None]], dim=-1)
        if last:
            return
        picked = torch.zeros_like(take(self.chosen, parents)).scatter(2, picks[..., None], ~stopped[..., None])
        self.chosen = take(self.chosen, parents) | picked
        self.state = self.model.advance(self.encoded, follow(self.state, parents), picks)

    def finish(self, shots: int, ranked: bool) -> Selections:
        """The sequences; to end where a model could have gone on is a choice of its own."""
        if self.stop and shots < self.model.config.max_shots:
            self.totals = self.totals + self.step(shots)[0][..., -1]
        if ranked:
            self.totals, order = self.totals.sort(dim=-1, descending=True, stable=True)
            self.pointers = take(self.pointers, order)
        missing = self.totals == float("-inf")
        return Selections(self.pointers.masked_fill(missing.unsqueeze(-1), -1), self.totals)


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """Modules made within get weights drawn from `seed`; the global generator is afterwards as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def project(width: int, hidden: int) -> nn.Module | None:
    """A projection between spaces whose inner products it keeps as well as it can; none for equal widths."""
    if width == hidden:
        return None
    layer = nn.Linear(width, hidden, bias=False)
    with torch.no_grad():
        layer.weight.copy_(nn.init.orthogonal_(torch.empty(hidden, width, dtype=torch.float32)))
    return layer
