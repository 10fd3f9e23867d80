"""A tiny Qwen3.5: three layers of linear attention (Gated DeltaNet) before each of full attention. Also with a mixture
of experts."""

from dataclasses import replace
from typing import Any

from models.tiny_families.qwen3_vl import settings
from models.tiny_families.size import TinySize

LAYERS = 4
"""At least: the last of each four has full attention."""


def with_states(tokenizer: Any, size: TinySize) -> dict[str, Any]:
    """What the configurations of both forms of Qwen3.5 have in common."""
    chosen = settings(tokenizer, replace(size, layers=max(size.layers, LAYERS)), [2, 1, 1])
    chosen["text_config"] |= {
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    chosen["text_config"]["rope_parameters"] |= {"partial_rotary_factor": 0.25}
    return chosen


def build_model(tokenizer: Any, size: TinySize) -> Any:
    """A `Qwen3_5ForConditionalGeneration` with random float32 weights; its processor is the tiny Qwen3-VL's."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, set_seed

    set_seed(size.seed)
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(**with_states(tokenizer, size)))


def build_mixture(tokenizer: Any, size: TinySize) -> Any:
    """A `Qwen3_5MoeForConditionalGeneration` of the same, with an expert of all tokens beside those they choose."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, set_seed

    chosen = with_states(tokenizer, size)
    chosen["text_config"] |= size.experts() | {"shared_expert_intermediate_size": size.hidden_size // 2}
    set_seed(size.seed)
    return Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(**chosen))
