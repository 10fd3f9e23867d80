"""The selector's arithmetic as the earlier system did it: what benchmarks/selector.py measures against.

The same function as `PointerSelector` with history `gate` and scorer `cosine`, from the same weights, written in the
straightforward way: attention by `torch.nn.MultiheadAttention`, every sequence of a query in training with a copy of
the query and of its candidates, and in candidate generation one query at a time, which reads the query and all of its
candidates again at every step of every sequence.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.selectors.pointer import PointerSelector


class NaiveSelector(nn.Module):
    """Takes copies, so that training it changes nothing elsewhere.

    Args:
        selector: whose weights to copy; with history `gate`, scorer `cosine`, and no diversity or STOP.
    """

    def __init__(self, selector: PointerSelector):
        super().__init__()
        config = selector.config
        hidden = config.hidden_size
        self.temperature = config.temperature
        self.input_proj = nn.Linear(config.embedding_size, hidden, bias=False)
        self.cross_attn_layers = nn.ModuleList(
            nn.MultiheadAttention(hidden, config.num_heads, batch_first=True) for _ in range(config.num_layers)
        )
        self.attn_norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(config.num_layers))
        self.query_proj = nn.Linear(hidden, hidden, bias=False)
        self.cand_proj = nn.Linear(hidden, hidden, bias=False)
        self.query_update_gate = nn.Linear(2 * hidden, hidden)
        self.load_state_dict(selector.state_dict())
        self.train(selector.training)

    def _read(self, query: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, d) and (N, K, d) -> state (N, hidden) and keys (N, K, hidden)."""
        query, candidates = self.input_proj(query), self.input_proj(candidates)
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            attended, _ = attention(query.unsqueeze(1), candidates, candidates)
            query = norm(attended.squeeze(1) + query)
        return F.normalize(self.query_proj(query), dim=-1), F.normalize(self.cand_proj(candidates), dim=-1)

    def _remember(self, state: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.query_update_gate(torch.cat([state, chosen], dim=-1)))
        return F.normalize(gate * state + (1 - gate) * chosen, dim=-1)

    def log_probs(self, query: torch.Tensor, candidates: torch.Tensor, pointers: torch.Tensor) -> torch.Tensor:
        """(B, d), (B, K, d) and (B, G, S) -> (B, G): queries and candidates are expanded by G."""
        queries, groups, shots = pointers.shape
        query = query.unsqueeze(1).expand(-1, groups, -1).reshape(queries * groups, -1)
        candidates = (
            candidates.unsqueeze(1).expand(-1, groups, -1, -1).reshape(queries * groups, *candidates.shape[1:])
        )
        targets = pointers.reshape(queries * groups, shots)
        state, keys = self._read(query, candidates)
        chosen = torch.zeros(keys.shape[:2], dtype=torch.bool)
        total = torch.zeros(queries * groups)
        for step in range(shots):
            logits = torch.bmm(keys, state.unsqueeze(-1)).squeeze(-1) / self.temperature
            logits = logits.masked_fill(chosen, -100.0)
            total = total - F.cross_entropy(logits, targets[:, step], reduction="none")
            chosen = chosen.scatter(1, targets[:, step : step + 1], True)
            index = targets[:, step].view(-1, 1, 1).expand(-1, 1, keys.shape[-1])
            state = self._remember(state, keys.gather(1, index).squeeze(1))
        return total.view(queries, groups)

    def step_log_probs(
        self, query: torch.Tensor, candidates: torch.Tensor, pointer: list[int], temperature: float = 1
    ):
        """(d) and (K, d) -> (K): of the next choice after `pointer`. Everything is read again."""
        state, keys = self._read(query.unsqueeze(0), candidates.unsqueeze(0))
        for position in pointer:
            state = self._remember(state, keys[:, position])
        logits = (keys[0] @ state[0]) / self.temperature
        if pointer:
            logits[pointer] = -100.0
        return (logits / temperature).log_softmax(-1)

    @torch.no_grad()
    def beams(self, query: torch.Tensor, candidates: torch.Tensor, shots: int, width: int) -> list[tuple[list, float]]:
        """Beams of one query, best first: (pointer, log-probability)."""
        beams: list[tuple[list[int], float]] = [([], 0.0)]
        for _ in range(shots):
            grown = []
            for pointer, score in beams:
                best = self.step_log_probs(query, candidates, pointer).topk(width)
                for gain, position in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    grown.append(([*pointer, position], score + gain))
            beams = sorted(grown, key=lambda beam: -beam[1])[:width]
        return beams

    @torch.no_grad()
    def sample(self, query: torch.Tensor, candidates: torch.Tensor, shots: int, temperature: float) -> list[int]:
        """One sampled pointer of one query."""
        pointer: list[int] = []
        for _ in range(shots):
            probs = self.step_log_probs(query, candidates, pointer, temperature).exp()
            pointer.append(int(torch.multinomial(probs, 1)))
        return pointer
