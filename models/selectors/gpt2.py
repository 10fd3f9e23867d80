"""A GPT-2 that writes a sequence of examples: the earliest selector (v0), behind the interface of `PointerSelector`.

It reads the query's embedding and those of the examples chosen so far, and its output is compared with the pool's
examples. Unlike the original, whose vocabulary was the training set, it works for any pool and for unseen examples.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model

from models.selectors.base import Encoded, EncodedExamples, Selector, State, fresh_weights
from models.selectors.config import SelectorConfig
from models.selectors.pool_batches import PoolTable


class GPT2SelectorConfig(SelectorConfig):
    """Shape of a `GPT2Selector`; `SelectorConfig` describes the fields that are not here.

    Attributes:
        hidden_size, num_heads, num_layers: of the GPT-2.
        max_shots: the most examples that can be chosen, with or without `stop`: GPT-2 has no positions beyond.
        dropout: of embeddings, attention and residuals.
    """

    model_type = "gpt2_selector"

    num_heads: int = 4
    num_layers: int = 2

    def check(self) -> None:
        super().check()
        self.expect_least("num_layers", 1)


class GPT2Selector(Selector):
    """Reads the query and the examples chosen so far as a sequence."""

    config_class = GPT2SelectorConfig

    def __init__(self, config: GPT2SelectorConfig):
        super().__init__(config)
        with fresh_weights(config.seed):
            self.query_proj = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
            self.example_proj = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
            self.transformer = GPT2Model(
                GPT2Config(
                    vocab_size=1,
                    n_positions=config.max_shots + 1,
                    n_embd=config.hidden_size,
                    n_head=config.num_heads,
                    n_layer=config.num_layers,
                    resid_pdrop=config.dropout,
                    embd_pdrop=config.dropout,
                    attn_pdrop=config.dropout,
                    use_cache=False,
                    bos_token_id=None,
                    eos_token_id=None,
                )
            )
            del self.transformer.wte  # it reads embeddings, no tokens
            if config.stop:
                self.stop_key = nn.Parameter(F.normalize(torch.randn(config.hidden_size), dim=0))
            self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module above has the weights that it should start with."""

    @property
    def shot_limit(self) -> int:
        return self.config.max_shots

    def encode_examples(self, example_embeddings: torch.Tensor) -> EncodedExamples:
        """What depends on the examples (U, d) alone."""
        return EncodedExamples(F.normalize(self.example_proj(example_embeddings), dim=-1))

    def encode(
        self, query_embeddings: torch.Tensor, examples: torch.Tensor | EncodedExamples, pools: torch.Tensor
    ) -> Encoded:
        """Reads a batch once: see `Selector.encode`."""
        examples, pools = self.read_batch(query_embeddings, examples, pools)
        queries = F.normalize(self.query_proj(query_embeddings), dim=-1)
        return Encoded(pools, queries, examples, PoolTable(examples.keys, pools))

    def start(self, encoded: Encoded) -> State:
        return {"sequence": encoded.queries[:, None, None]}  # (B, G, step + 1, hidden)

    def advance(self, encoded: Encoded, state: State, picks: torch.Tensor) -> State:
        chosen = encoded.key_rows(picks).unsqueeze(2)
        return {"sequence": torch.cat([state["sequence"], chosen], dim=2)}

    def raw_logits(self, encoded: Encoded, state: State, step: int) -> torch.Tensor:
        return self._compare(encoded, self._read(state["sequence"])[:, :, -1:])[:, :, 0]

    def teacher_logits(self, encoded: Encoded, pointers: torch.Tensor, steps: int) -> torch.Tensor:
        """`Selector.teacher_logits` in one pass: attention is causal."""
        chosen = encoded.key_rows(pointers[:, :, : steps - 1].clamp(min=0))  # (B, G, steps - 1, hidden)
        query = encoded.queries[:, None, None].expand(-1, pointers.shape[1], 1, -1)
        return self._compare(encoded, self._read(torch.cat([query, chosen], dim=2)))

    def _read(self, sequence: torch.Tensor) -> torch.Tensor:
        """(B, G, T, hidden) -> (B, G, T, hidden), with entries of about unit variance."""
        # Embeddings of length 1 are brought to the scale of GPT-2's residual stream after its blocks.
        inputs = sequence.flatten(0, 1) * math.sqrt(sequence.shape[-1])
        return self.transformer(inputs_embeds=inputs).last_hidden_state.view_as(sequence)

    def _compare(self, encoded: Encoded, outputs: torch.Tensor) -> torch.Tensor:
        """(B, G, T, hidden) -> (B, G, T, K or K + 1)."""
        outputs = outputs / math.sqrt(outputs.shape[-1])
        scores = encoded.keys.dot(outputs.flatten(1, 2)).unflatten(1, outputs.shape[1:3])
        if self.config.stop:
            scores = torch.cat([scores, (outputs @ self.stop_key).unsqueeze(-1)], dim=-1)
        return scores / self.config.temperature


AutoConfig.register(GPT2SelectorConfig.model_type, GPT2SelectorConfig)
AutoModel.register(GPT2SelectorConfig, GPT2Selector)
