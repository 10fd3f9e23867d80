"""Shapes of published models, for estimates and tests on machines that cannot reach them.

Sources: `config.json` of each model on the Hub, as it is quoted in public code, in copies of the models and in the
default values of transformers' configuration classes. Each shape gives the number of parameters that the Hub states
(tests/models/families/test_published.py says where the number is from). A model that was not confirmed so is left out.
"""

from dataclasses import dataclass
from typing import Any

from data.io.images import ImageSource
from data.io.pixel_bounds import BoundsError, ImageReader, PixelBounds

# -- language models --------------------------------------------------------------------------------------------------


def _text(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


def _qwen2_text(*sizes: int, vocabulary: int) -> dict:
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    return _text(*sizes, vocab_size=vocabulary, max_position_embeddings=32768, rope_parameters=rope)


def _qwen3_text(*sizes: int) -> dict:
    rope = {
        "rope_type": "default",
        "rope_theta": 5_000_000.0,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    return _text(*sizes, head_dim=128, vocab_size=151936, max_position_embeddings=262144, rope_parameters=rope)


def _qwen35_text(*sizes: int, value_heads: int) -> dict:
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000_000.0,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.25,
    }
    more = {"linear_num_value_heads": value_heads, "max_position_embeddings": 262144, "rope_parameters": rope}
    return _text(*sizes, head_dim=256, vocab_size=248320, **more)


# -- families ---------------------------------------------------------------------------------------------------------

_QWEN2_VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
_QWEN25_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
# Towers of Qwen3-VL and Qwen3.5, by their size.
_BASE = {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12}
_LARGE = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
_SO400M = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
_DEEPSTACK = {24: [5, 11, 17], 27: [8, 16, 24]}


def _siglip(model_type: str, layers: int, image_size: int, **more: Any) -> dict:
    return {
        "model_type": model_type,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "image_size": image_size,
        "patch_size": 14,
        **more,
    }


def _qwen2(text: dict, tied: bool) -> tuple[str, dict]:
    vision = {**_QWEN2_VISION, "hidden_size": text["hidden_size"]}
    return "qwen2_vl", {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def _qwen25(text: dict, tied: bool) -> tuple[str, dict]:
    vision = {**_QWEN25_VISION, "out_hidden_size": text["hidden_size"]}
    return "qwen2_5_vl", {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def _qwen3(text: dict, tower: dict, tied: bool) -> tuple[str, dict]:
    layers = _DEEPSTACK[tower["depth"]]
    vision = {**tower, "out_hidden_size": text["hidden_size"], "deepstack_visual_indexes": layers}
    return "qwen3_vl", {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def _qwen35(text: dict, tower: dict, tied: bool) -> tuple[str, dict]:
    vision = {**tower, "out_hidden_size": text["hidden_size"]}
    return "qwen3_5", {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def _internvl(text_type: str, text: dict) -> tuple[str, dict]:
    text, vision = {"model_type": text_type, **text}, {"attention_bias": True}
    return "internvl", {"text_config": text, "vision_config": vision, "tie_word_embeddings": False}


def _gemma3(text: dict, window: int = 1024) -> tuple[str, dict]:
    text = {**text, "vocab_size": 262208, "sliding_window": window}
    vision = _siglip("siglip_vision_model", 27, 896, vision_use_head=False)
    return "gemma3", {"text_config": text, "vision_config": vision}


def _gemma4_small(text: dict, sliding: int, shared: int, double_wide: bool) -> tuple[str, dict]:
    """With embeddings for each layer and an audio tower; the vision tower is that of transformers' defaults."""
    layers = text["num_hidden_layers"]
    kinds = (["sliding_attention"] * sliding + ["full_attention"]) * (layers // (sliding + 1))
    text = {**text, "layer_types": kinds, "num_kv_shared_layers": shared, "use_double_wide_mlp": double_wide}
    return "gemma4", {"text_config": text, "vision_config": {}, "audio_config": {}}


def _gemma4_large(text: dict, global_kv_heads: int, **more: Any) -> tuple[str, dict]:
    own = {"sliding_window": 1024, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True}
    text = {**text, **own, "num_global_key_value_heads": global_kv_heads, **more}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "standardize": True}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72}
    return "gemma4", {"text_config": text, "vision_config": {**vision, **heads}, "audio_config": None}


def _smolvlm(text: dict, vision: dict, scale: int) -> tuple[str, dict]:
    text = {"model_type": "llama", "head_dim": 64, "vocab_size": 49280, **text}
    return "smolvlm", {"text_config": text, "vision_config": vision, "scale_factor": scale, "image_token_id": 49190}


def _llava(text: dict, tied: bool) -> tuple[str, dict]:
    text = {"model_type": "qwen2", "vocab_size": 152000, **text}
    vision = _siglip("siglip_vision_model", 26, 384, vision_use_head=False)
    return "llava_onevision", {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


_SMALL_SMOLVLM_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
_MIXTURE = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}

PUBLISHED_SHAPES = {
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2(_qwen2_text(1536, 8960, 28, 12, 2, vocabulary=151936), tied=True),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2(_qwen2_text(3584, 18944, 28, 28, 4, vocabulary=152064), tied=False),
    "Qwen/Qwen2-VL-72B-Instruct": _qwen2(_qwen2_text(8192, 29568, 80, 64, 8, vocabulary=152064), tied=False),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen25(_qwen2_text(2048, 11008, 36, 16, 2, vocabulary=151936), tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen25(_qwen2_text(3584, 18944, 28, 28, 4, vocabulary=152064), tied=False),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3(_qwen3_text(2048, 6144, 28, 16, 8), _LARGE, tied=True),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(_qwen3_text(2560, 9728, 36, 32, 8), _LARGE, tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(_qwen3_text(4096, 12288, 36, 32, 8), _SO400M, tied=False),
    "Qwen/Qwen3-VL-32B-Instruct": _qwen3(_qwen3_text(5120, 25600, 64, 64, 8), _SO400M, tied=False),
    "Qwen/Qwen3.5-0.8B": _qwen35(_qwen35_text(1024, 3584, 24, 8, 2, value_heads=16), _BASE, tied=True),
    "Qwen/Qwen3.5-2B": _qwen35(_qwen35_text(2048, 6144, 24, 8, 2, value_heads=16), _LARGE, tied=True),
    "Qwen/Qwen3.5-4B": _qwen35(_qwen35_text(2560, 9216, 32, 16, 4, value_heads=32), _LARGE, tied=True),
    "Qwen/Qwen3.5-9B": _qwen35(_qwen35_text(4096, 12288, 32, 16, 4, value_heads=32), _SO400M, tied=False),
    "Qwen/Qwen3.5-27B": _qwen35(_qwen35_text(5120, 17408, 64, 24, 4, value_heads=48), _SO400M, tied=False),
    "OpenGVLab/InternVL3-1B-hf": _internvl("qwen2", _text(896, 4864, 24, 14, 2, vocab_size=151674)),
    "OpenGVLab/InternVL3-2B-hf": _internvl("qwen2", _text(1536, 8960, 28, 12, 2, vocab_size=151674)),
    "OpenGVLab/InternVL3-8B-hf": _internvl("qwen2", _text(3584, 18944, 28, 28, 4, vocab_size=151674)),
    "OpenGVLab/InternVL3_5-1B-HF": _internvl("qwen3", _text(1024, 3072, 28, 16, 8, head_dim=128, vocab_size=151936)),
    "OpenGVLab/InternVL3_5-8B-HF": _internvl("qwen3", _text(4096, 12288, 36, 32, 8, head_dim=128, vocab_size=151936)),
    "google/gemma-3-4b-it": _gemma3(_text(2560, 10240, 34, 8, 4, head_dim=256, query_pre_attn_scalar=256)),
    "google/gemma-3-12b-it": _gemma3(_text(3840, 15360, 48, 16, 8, head_dim=256, query_pre_attn_scalar=256)),
    "google/gemma-3-27b-it": _gemma3(_text(5376, 21504, 62, 32, 16, head_dim=128, query_pre_attn_scalar=168)),
    "google/gemma-4-E2B-it": _gemma4_small(_text(1536, 6144, 35, 8, 1), sliding=4, shared=20, double_wide=True),
    "google/gemma-4-E4B-it": _gemma4_small(_text(2560, 10240, 42, 8, 2), sliding=5, shared=18, double_wide=False),
    "google/gemma-4-26B-A4B-it": _gemma4_large(_text(2816, 2112, 30, 16, 8), 2, **_MIXTURE),
    "google/gemma-4-31B-it": _gemma4_large(_text(5376, 21504, 60, 32, 16), 4),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": _smolvlm(_text(576, 1536, 30, 9, 3), _SMALL_SMOLVLM_VISION, 4),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": _smolvlm(_text(960, 2560, 32, 15, 5), _SMALL_SMOLVLM_VISION, 4),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": _smolvlm(
        _text(2048, 8192, 24, 32, 32), _siglip("smolvlm_vision", 27, 384), 3
    ),
    "HuggingFaceM4/Idefics3-8B-Llama3": (
        "idefics3",
        {
            "text_config": _text(4096, 14336, 32, 32, 8, vocab_size=128259, model_type="llama"),
            "vision_config": _siglip("idefics3_vision", 27, 364),
            "scale_factor": 2,
        },
    ),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": _llava(_text(896, 4864, 24, 14, 2), tied=True),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": _llava(_text(3584, 18944, 28, 28, 4, vocab_size=152128), tied=False),
}


def published_config(name: str):
    """The configuration of a published model without asking the Hub, or `None` for a name that is not listed."""
    from transformers import AutoConfig

    if name not in PUBLISHED_SHAPES:
        return None
    model_type, parameters = PUBLISHED_SHAPES[name]
    return AutoConfig.for_model(model_type, **parameters)


# -- images -----------------------------------------------------------------------------------------------------------

_OLDER_BOUNDS = PixelBounds(56 * 56, 28 * 28 * 1280, 14)
_NEWER_BOUNDS = PixelBounds(256 * 256, 4096 * 4096, 16)
_BOUNDS = {"qwen3_vl": _NEWER_BOUNDS, "qwen3_5": _NEWER_BOUNDS}
"""Of the processors that resize to any size; Qwen2-VL's are `_OLDER_BOUNDS`, which are those of unknown models too."""
_TILES = 4 * 4 + 1
"""Most that Idefics3 and SmolVLM cut an image into, and the whole."""
_MOST_TOKENS = {
    "internvl": 13 * 256 + 2,  # 12 tiles and the whole
    "gemma3": 256 + 4,
    "gemma4": 280 + 2,
    "idefics3": _TILES * (169 + 2) + 8,
    "smolvlm": _TILES * (81 + 2) + 8,
    "llava_onevision": 10 * 729 + 81,  # 9 tiles, the whole, and a token at the end of each row
}
"""Of an image, with those around it, by the processors that have rules of their own."""


_PIXELS_OF_A_TOKEN = {"gemma4": 48 * 48}
"""By those of them that `max_pixels` gives another number of tokens."""


@dataclass(frozen=True)
class MostTokens(ImageReader):
    """Every image counts as many tokens as the processor, which cannot be reached, makes of any at most.

    Attributes:
        most: of an image, with those around it.
    """

    most: int

    def tokens(self, source: ImageSource, others: int = 0) -> int:
        return self.most


def published_reader(name: str, low: int | None, high: int | None) -> ImageReader:
    """What is known of how a model that cannot be reached has its images: an upper bound of their tokens.

    Args:
        name: of any model; one that is not listed is taken for a Qwen2-VL.
        low, high: bounds of a recipe, in pixels.

    Raises:
        BoundsError: bounds that the model's processor does not have.
    """
    model_type, _ = PUBLISHED_SHAPES.get(name, ("qwen2_vl", {}))
    if model_type not in _MOST_TOKENS:
        own = _BOUNDS.get(model_type, _OLDER_BOUNDS)
        low = low or own.minimum
        return PixelBounds(low, max(low, high or own.maximum), own.patch_size)
    if low is None and high is None:
        return MostTokens(_MOST_TOKENS[model_type])
    pixels = _PIXELS_OF_A_TOKEN.get(model_type)
    if high is None or low is not None or pixels is None:
        asked = "max_pixels" if low is None else "min_pixels"
        raise BoundsError(
            f"{asked}: the processor of {name} resizes images by rules of its own, and takes no such bound; leave it "
            "out"
        )
    return MostTokens(high // pixels + 2)
