"""How large a tiny model is."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TinySize:
    """Of a tiny model's language part.

    Attributes:
        hidden_size: a multiple of 32, the width of a head.
        initializer_range: standard deviation of the initial weights. At this size the usual 0.02 does not learn.
    """

    hidden_size: int = 128
    layers: int = 2
    seed: int = 0
    initializer_range: float = 0.08

    def text(self, vocabulary: int) -> dict[str, Any]:
        """What the configurations of all families' language models call by the same names."""
        heads = self.hidden_size // 32
        return {
            "vocab_size": vocabulary,
            "hidden_size": self.hidden_size,
            "intermediate_size": 2 * self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 2),
            "max_position_embeddings": 4096,
            "initializer_range": self.initializer_range,
            "bos_token_id": None,
        }

    def experts(self) -> dict[str, int]:
        """Of a mixture: a token goes to 2 of 4 experts. None of their weights is square, because transformers finds by
        its shape whether one is stored transposed."""
        return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 3 * self.hidden_size // 4}


def siglip(image_size: int, patch_size: int) -> dict[str, Any]:
    """A vision tower of 2 layers, for images of this side in pixels."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        "vision_use_head": False,
    }
