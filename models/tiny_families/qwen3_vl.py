"""A tiny Qwen3-VL: vision features also reach the first layers of its language model, and M-RoPE is interleaved. Also
with a mixture of experts."""

from typing import Any

from models.tiny_families.size import TinySize

PATCH_SIZE = 8
MERGE_SIZE = 2
MAX_PIXELS = 64 * 64


def build_processor(tokenizer: Any) -> Any:
    """A `Qwen3VLProcessor` for images of at most 16 visual tokens; `tokenizer` as the tiny Qwen2-VL's."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    sizes = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": (PATCH_SIZE * MERGE_SIZE) ** 2, "longest_edge": MAX_PIXELS},
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes),
        chat_template=tokenizer.chat_template,
    )


def settings(tokenizer: Any, size: TinySize, sections: list[int]) -> dict[str, Any]:
    """What the configurations of Qwen3-VL and Qwen3.5 have in common.

    Args:
        sections: how many of a head's frequencies go by time, height and width.
    """
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections, "mrope_interleaved": True}
    return {
        "text_config": {
            **size.text(len(tokenizer)),
            "head_dim": 32,
            "rope_parameters": rope,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH_SIZE,
            "out_hidden_size": size.hidden_size,
            "num_position_embeddings": 64,  # of a square
            "initializer_range": size.initializer_range,
        },
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": True,
    }


def with_deepstack(tokenizer: Any, size: TinySize) -> dict[str, Any]:
    """What the configurations of both forms of Qwen3-VL have in common."""
    chosen = settings(tokenizer, size, [6, 5, 5])
    chosen["vision_config"] |= {"deepstack_visual_indexes": [0, 1]}
    return chosen


def build_model(tokenizer: Any, size: TinySize) -> Any:
    """A `Qwen3VLForConditionalGeneration` with random float32 weights."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, set_seed

    set_seed(size.seed)
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**with_deepstack(tokenizer, size)))


def build_mixture(tokenizer: Any, size: TinySize) -> Any:
    """A `Qwen3VLMoeForConditionalGeneration` of the same."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, set_seed

    chosen = with_deepstack(tokenizer, size)
    chosen["text_config"] |= size.experts()
    set_seed(size.seed)
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**chosen))
