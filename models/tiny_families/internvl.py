"""A tiny InternVL: images cut into tiles of one size, with a small picture of all of it beside them."""

from typing import Any

from models.tiny_families.size import TinySize

SIDE = 32
"""Of a tile, in pixels: 16 patches, shuffled to 4 tokens."""
PATCH_SIZE = 8
TOKENS_PER_TILE = 4
MOST_TILES = 4

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""Those that the processor reads as attributes of its tokenizer."""
IMAGE_BLOCKS = {
    "<|vision_start|><|image_pad|><|vision_end|>": "<IMG_CONTEXT>\\n",
    "<|vision_start|><|video_pad|><|vision_end|>": "<video>\\n",
}
"""What stands for images in ChatML as Qwen2-VL writes it, and what InternVL writes in its place."""


def build_processor(tokenizer: Any) -> Any:
    """An `InternVLProcessor`: up to four tiles an image, and one more if it has several."""
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    size = {"height": SIDE, "width": SIDE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=MOST_TILES),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=TOKENS_PER_TILE,
        chat_template=tokenizer.chat_template,
    )


def build_model(tokenizer: Any, size: TinySize) -> Any:
    """An `InternVLForConditionalGeneration` with random float32 weights."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, set_seed

    ids = tokenizer.convert_tokens_to_ids
    config = InternVLConfig(
        text_config={
            **size.text(len(tokenizer)),
            "model_type": "qwen3",
            "head_dim": 32,
            "tie_word_embeddings": True,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [SIDE, SIDE],
            "patch_size": [PATCH_SIZE, PATCH_SIZE],
            "initializer_range": size.initializer_range,
        },
        image_token_id=ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS_PER_TILE,
        tie_word_embeddings=True,
    )
    set_seed(size.seed)
    return InternVLForConditionalGeneration(config)
