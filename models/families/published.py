"""Shapes of the published Qwen2-VL and Qwen2.5-VL models, for estimates and tests on machines that cannot reach them.

Source: `config.json` of each model on the Hub.
"""

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


def _text(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    }


def _qwen2(text: dict, tied: bool) -> tuple[str, dict]:
    vision = {**_QWEN2_VISION, "hidden_size": text["hidden_size"]}
    return "qwen2_vl", {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def _qwen25(text: dict, tied: bool) -> tuple[str, dict]:
    vision = {**_QWEN25_VISION, "out_hidden_size": text["hidden_size"]}
    return "qwen2_5_vl", {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


PUBLISHED_SHAPES = {
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2(_text(1536, 8960, 28, 12, 2, 151936), tied=True),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2(_text(3584, 18944, 28, 28, 4, 152064), tied=False),
    "Qwen/Qwen2-VL-72B-Instruct": _qwen2(_text(8192, 29568, 80, 64, 8, 152064), tied=False),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen25(_text(2048, 11008, 36, 16, 2, 151936), tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen25(_text(3584, 18944, 28, 28, 4, 152064), tied=False),
}

PUBLISHED_PATCH_SIZE = 14
PUBLISHED_MIN_PIXELS = 56 * 56
PUBLISHED_MAX_PIXELS = 28 * 28 * 1280


def published_config(name: str):
    """The configuration of a published model without asking the Hub, or `None` for a name that is not listed."""
    from transformers import AutoConfig

    if name not in PUBLISHED_SHAPES:
        return None
    model_type, parameters = PUBLISHED_SHAPES[name]
    return AutoConfig.for_model(model_type, **parameters)
