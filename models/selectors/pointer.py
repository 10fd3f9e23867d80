"""A small model that chooses examples for a query by pointing into the query's pool, one example after the other.

The query, refined by cross-attention to its pool, is compared with every example. Each choice changes the state that
the next one is made from (the history). The configuration spells the variants; docs/selectors.md names them.

What depends on an example alone is computed once per example, however many pools it is in; what depends on the query
alone once per query, however many sequences are scored. Keys and values of the attention are never formed:

    q . (Wk x + bk) = (Wk' q) . x + const        sum_i a_i (Wv x_i + bv) = Wv (sum_i a_i x_i) + bv sum_i a_i

so the attention costs one matrix per query in place of two per example, and is exact.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel

from models.errors import ModelError
from models.selectors.base import Encoded, EncodedExamples, Selector, State, fresh_weights, project
from models.selectors.config import SelectorConfig
from models.selectors.pool_batches import PoolTable

HISTORIES = ("none", "gate", "gru")
SCORERS = ("cosine", "additive", "bilinear")
DIVERSITY_START = 0.1
"""Weight of the similarity to what is chosen already, before training."""


class PointerSelectorConfig(SelectorConfig):
    """Shape and variant of a `PointerSelector`; `SelectorConfig` describes the fields that are not here.

    Attributes:
        hidden_size: there is no input projection if it equals `embedding_size`.
        input_width: of the hidden layer of a network that queries and examples pass first, in place of the linear
            projection; 0: none. With it, what counts about an example can depend on what else is true of it.
        num_heads, num_layers: of the query's cross-attention to its pool; 0 layers make a bi-encoder.
        history: how a choice changes the state: `none` not at all, `gate` mixes the chosen example in, `gru`.
        scorer: how state and example are compared: `cosine`, `additive` (v . tanh(Ws s + Wc c)) or `bilinear`.
        diversity: subtract a learned multiple of the similarity to the most similar example chosen already.
        dropout: of the attention's weights.
    """

    model_type = "pointer_selector"

    input_width: int = 0
    num_layers: int = 1
    history: str = "gate"
    scorer: str = "cosine"
    diversity: bool = False

    def check(self) -> None:
        super().check()
        self.expect_least("input_width", 0)
        self.expect_least("num_layers", 0)
        for name, allowed in (("history", HISTORIES), ("scorer", SCORERS)):
            if getattr(self, name) not in allowed:
                raise ModelError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}")


@dataclass
class AttendedExamples(EncodedExamples):
    """`EncodedExamples` of a `PointerSelector`.

    Attributes:
        hidden: (U, hidden), what the query attends to.
        additive: (U, hidden), the example's part of the additive scorer.
    """

    hidden: torch.Tensor
    additive: torch.Tensor | None


class PoolAttention(nn.Module):
    """`torch.nn.MultiheadAttention` of one query to its pool, with the same parameters, without keys and values."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: torch.Tensor, table: PoolTable, valid: torch.Tensor) -> torch.Tensor:
        """(B, hidden), the pools' examples, and which of the pools' positions hold one -> (B, hidden)."""
        hidden = queries.shape[-1]
        by_head = (self.heads, hidden // self.heads, hidden)
        to_query, to_key, to_value = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)  # the keys' bias moves all scores alike
        query = F.linear(queries, to_query, query_bias).view(-1, *by_head[:2]) / math.sqrt(by_head[1])
        asked = (query.transpose(0, 1) @ to_key.view(by_head)).transpose(0, 1)  # (B, heads, hidden)
        scores = table.dot(asked).masked_fill(~valid.unsqueeze(1), float("-inf"))  # (B, heads, K)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = table.mix(weights).transpose(0, 1)  # (heads, B, hidden)
        value = (mixed @ to_value.view(by_head).transpose(1, 2)).transpose(0, 1)  # (B, heads, hidden / heads)
        value = value + value_bias.view(by_head[:2]) * weights.sum(-1, keepdim=True)
        return self.out_proj(value.flatten(1))


class InputNetwork(nn.Module):
    """Two layers over an embedding, whatever its length: (..., d) -> (..., hidden)."""

    def __init__(self, embedding_size: int, width: int, hidden: int):
        super().__init__()
        self.first = nn.Linear(embedding_size, width)
        self.second = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-5)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        spread = F.rms_norm(embeddings, embeddings.shape[-1:])
        return self.norm(self.second(F.gelu(self.first(spread))))


class PointerSelector(Selector):
    """Compares a state with every example of the pool; each choice changes the state."""

    config_class = PointerSelectorConfig

    def __init__(self, config: PointerSelectorConfig):
        super().__init__(config)
        hidden = config.hidden_size
        with fresh_weights(config.seed):
            self.input_proj = (
                InputNetwork(config.embedding_size, config.input_width, hidden)
                if config.input_width
                else project(config.embedding_size, hidden)
            )
            self.cross_attn_layers = nn.ModuleList(
                PoolAttention(hidden, config.num_heads, config.dropout) for _ in range(config.num_layers)
            )
            self.attn_norms = nn.ModuleList(nn.LayerNorm(hidden, eps=1e-5) for _ in range(config.num_layers))
            self.query_proj = _near_identity(hidden)
            self.cand_proj = _near_identity(hidden)
            if config.history == "gate":
                self.query_update_gate = nn.Linear(2 * hidden, hidden)
            if config.history == "gru":
                self.history_cell = nn.GRUCell(hidden, hidden)
            if config.scorer == "additive":
                self.additive_state = nn.Linear(hidden, hidden, bias=False)
                self.additive_example = nn.Linear(hidden, hidden)
                self.additive_score = nn.Linear(hidden, 1, bias=False)
            if config.scorer == "bilinear":
                self.bilinear = _near_identity(hidden)
            if config.diversity:  # the weight is softplus of this
                self.diversity_weight = nn.Parameter(torch.tensor(math.log(math.expm1(DIVERSITY_START))))
            if config.stop:
                self.stop_state = nn.Linear(hidden, 1)
                self.stop_step = nn.Parameter(torch.zeros(config.max_shots))
            self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module above has the weights that it should start with."""

    # -- reading ------------------------------------------------------------------------------------------------------

    def encode_examples(self, example_embeddings: torch.Tensor) -> AttendedExamples:
        """What depends on the examples (U, d) alone."""
        hidden = self._project(example_embeddings)
        keys = F.normalize(self.cand_proj(hidden), dim=-1)
        additive = self.additive_example(keys) if self.config.scorer == "additive" else None
        return AttendedExamples(keys, hidden, additive)

    def encode(
        self, query_embeddings: torch.Tensor, examples: torch.Tensor | AttendedExamples, pools: torch.Tensor
    ) -> Encoded:
        """Reads a batch once: see `Selector.encode`."""
        examples, pools = self.read_batch(query_embeddings, examples, pools)
        queries = self._project(query_embeddings)
        if self.config.num_layers:
            table = PoolTable(examples.hidden, pools)
            for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
                queries = norm(attention(queries, table, pools.valid) + queries)
        queries = F.normalize(self.query_proj(queries), dim=-1)
        return Encoded(pools, queries, examples, PoolTable(examples.keys, pools))

    def _project(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings if self.input_proj is None else self.input_proj(embeddings)

    # -- choosing -----------------------------------------------------------------------------------------------------

    def start(self, encoded: Encoded) -> State:
        state = {"state": encoded.queries.unsqueeze(1)}
        if self.config.diversity:  # cosine to the most similar example chosen so far; there is none yet
            state["similar"] = torch.zeros_like(encoded.pools.rows, dtype=encoded.queries.dtype).unsqueeze(1)
            state["any"] = state["similar"].new_zeros(len(encoded.queries), 1, dtype=torch.bool)
        return state

    def advance(self, encoded: Encoded, state: State, picks: torch.Tensor) -> State:
        chosen = encoded.key_rows(picks)  # (B, G, hidden)
        after = {"state": self._remember(state["state"], chosen)}
        if self.config.diversity:
            similar = encoded.keys.dot(chosen)
            after["similar"] = torch.where(state["any"].unsqueeze(-1), similar.maximum(state["similar"]), similar)
            after["any"] = torch.ones_like(state["any"])
        return after

    def raw_logits(self, encoded: Encoded, state: State, step: int) -> torch.Tensor:
        scores = self._compare(encoded, state["state"])
        if self.config.diversity:
            scores = scores - F.softplus(self.diversity_weight) * state["similar"]
        if self.config.stop:
            scores = torch.cat([scores, self.stop_state(state["state"]) + self.stop_step[step - 1]], dim=-1)
        return scores / self.config.temperature

    def _remember(self, state: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The state (B, G, hidden) after choosing examples with these keys (B, G, hidden)."""
        if self.config.history == "none":
            return state
        if self.config.history == "gru":
            after = self.history_cell(chosen.flatten(0, 1), state.flatten(0, 1)).view_as(chosen)
        else:
            gate = torch.sigmoid(self.query_update_gate(torch.cat([state, chosen], dim=-1)))
            after = gate * state + (1 - gate) * chosen
        return F.normalize(after, dim=-1)

    def _compare(self, encoded: Encoded, states: torch.Tensor) -> torch.Tensor:
        """(B, G, hidden) -> (B, G, K)."""
        if self.config.scorer == "cosine":
            return encoded.keys.dot(states)
        if self.config.scorer == "bilinear":
            return encoded.keys.dot(self.bilinear(states))
        examples = F.embedding(encoded.pools.rows, encoded.examples.additive)  # (B, K, hidden)
        both = self.additive_state(states).unsqueeze(2) + examples.unsqueeze(1)  # (B, G, K, hidden)
        return self.additive_score(both.tanh()).squeeze(-1)

    def teacher_logits(self, encoded: Encoded, pointers: torch.Tensor, steps: int) -> torch.Tensor:
        """`Selector.teacher_logits` with one product for all steps: states depend on choices, not on logits."""
        queries, groups = pointers.shape[:2]
        chosen = encoded.key_rows(pointers[:, :, : steps - 1].clamp(min=0))  # (B, G, steps - 1, hidden)
        states = [encoded.queries.unsqueeze(1).expand(-1, groups, -1)]
        for step in range(steps - 1):
            states.append(self._remember(states[-1], chosen[:, :, step]))
        later = torch.stack(states, dim=2)[:, :, 1:].flatten(1, 2)  # (B, G * (steps - 1), hidden)
        states = torch.cat([states[0][:, :1], later], dim=1)  # before the first choice, all sequences share one
        scores = _by_step(self._compare(encoded, states), groups)
        if self.config.diversity and steps > 1:
            similar = encoded.keys.dot(chosen.flatten(1, 2)).view(queries, groups, steps - 1, -1).cummax(2).values
            scores = scores - F.softplus(self.diversity_weight) * F.pad(similar, (0, 0, 1, 0))
        if self.config.stop:
            before = torch.arange(steps, device=pointers.device) - 1
            stop = _by_step(self.stop_state(states), groups) + self.stop_step[before].unsqueeze(-1)
            scores = torch.cat([scores, stop], dim=-1)
        return scores / self.config.temperature


def _by_step(values: torch.Tensor, groups: int) -> torch.Tensor:
    """(B, 1 + G * (T - 1), n), whose first row all G sequences share, -> (B, G, T, n)."""
    first = values[:, :1].unsqueeze(1).expand(-1, groups, -1, -1)
    return torch.cat([first, values[:, 1:].unflatten(1, (groups, -1))], dim=2)


def _near_identity(hidden: int) -> nn.Linear:
    layer = nn.Linear(hidden, hidden, bias=False)
    nn.init.eye_(layer.weight)
    with torch.no_grad():
        layer.weight.add_(0.01 * torch.randn_like(layer.weight))
    return layer


AutoConfig.register(PointerSelectorConfig.model_type, PointerSelectorConfig)
AutoModel.register(PointerSelectorConfig, PointerSelector)
