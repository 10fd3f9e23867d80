"""Small selectors of every variant, and batches for them."""

import itertools
from dataclasses import dataclass

import torch

from models.selectors.base import Selector
from models.selectors.gpt2 import GPT2Selector, GPT2SelectorConfig
from models.selectors.pointer import HISTORIES, SCORERS, PointerSelector, PointerSelectorConfig

WIDTH = 12
SHAPE = {"embedding_size": WIDTH, "hidden_size": 8, "num_heads": 2, "max_shots": 4}
SWITCHES = (False, True)

POINTER_VARIANTS = [
    {"history": history, "scorer": scorer, "diversity": diversity, "stop": stop, "num_layers": layers}
    for history, scorer, diversity, stop, layers in itertools.product(
        HISTORIES, SCORERS, SWITCHES, SWITCHES, (0, 1, 2)
    )
]
GPT2_VARIANTS = [
    {"stop": stop, "num_layers": layers, "gpt2": True} for stop, layers in itertools.product(SWITCHES, (1, 2))
]
NETWORK_VARIANTS = [{"input_width": 10}, {"input_width": 10, "num_layers": 0, "scorer": "additive"}]
VARIANTS = POINTER_VARIANTS + GPT2_VARIANTS + NETWORK_VARIANTS
FEW_VARIANTS = [
    {"history": "none", "num_layers": 0},
    {"input_width": 10},
    {"history": "gate"},
    {"history": "gru", "scorer": "additive", "diversity": True, "stop": True},
    {"scorer": "bilinear", "stop": True, "num_layers": 2},
    {"stop": True, "gpt2": True},
]
"""Each option once: for checks that would take long for all."""


def variant_name(variant: dict) -> str:
    return "-".join(
        name if value is True else f"{name}={value}" for name, value in variant.items() if value is not False
    )


def build(variant: dict, **options) -> Selector:
    """A selector in eval mode, with weights far enough from the start for all parts to matter."""
    options = {**SHAPE, **variant, **options}
    if options.pop("gpt2", False):
        selector = GPT2Selector(GPT2SelectorConfig(**options))
    else:
        selector = PointerSelector(PointerSelectorConfig(**options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return selector.eval()


@dataclass(frozen=True)
class Batch:
    """Queries (B, d), examples (U, d), pools (B, K) and pointers (B, G, S) of many lengths."""

    queries: torch.Tensor
    examples: torch.Tensor
    pools: torch.Tensor
    pointers: torch.Tensor

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return self.queries, self.examples, self.pools

    def alone(self, query: int) -> "Batch":
        """A query with nothing of the others and no padding: neither of pools nor of pointers."""
        pool = self.pools[query]
        kept = pool[pool >= 0]
        place = (pool >= 0).cumsum(0) - 1
        pointers = self.pointers[query]
        pointers = torch.where(pointers >= 0, place[pointers.clamp(min=0)], -1)
        longest = max(1, int((pointers >= 0).sum(-1).max()))
        return Batch(
            self.queries[query : query + 1],
            self.examples[kept],
            torch.arange(len(kept)).unsqueeze(0),
            pointers[None, :, :longest],
        )


def draw(sizes: list[int], sequences: int = 3, shots: int = 3, examples: int = 20, seed: int = 0) -> Batch:
    """A batch whose pools have these sizes, with padding in between; sequences have 0 to `shots` examples."""
    generator = torch.Generator().manual_seed(seed)
    width = max(sizes) + 1
    pools = torch.full((len(sizes), width), -1)
    pointers = torch.full((len(sizes), sequences, shots), -1)
    for query, size in enumerate(sizes):
        places = torch.randperm(width, generator=generator)[:size].sort().values
        pools[query, places] = torch.randperm(examples, generator=generator)[:size]
        for sequence in range(sequences):
            length = (
                min(size, shots)
                if sequence == 0
                else int(torch.randint(0, min(size, shots) + 1, (), generator=generator))
            )
            pointers[query, sequence, :length] = places[torch.randperm(size, generator=generator)[:length]]
    return Batch(
        torch.randn(len(sizes), WIDTH, generator=generator),
        torch.randn(examples, WIDTH, generator=generator),
        pools,
        pointers,
    )
