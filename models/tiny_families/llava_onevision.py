"""A tiny LLaVA-OneVision: a prompt's only image becomes a small picture of all of it beside tiles."""

from typing import Any

from models.tiny_families.size import TinySize, siglip

SIDE = 32
"""Of the small picture and of a tile, in pixels: 16 patches, a token each."""
PATCH_SIZE = 8
TOKENS = 16
RESOLUTIONS = [[32, 32], [32, 64], [64, 32], [64, 64]]
"""(height, width) that an image is cut into tiles of."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
NAMED_TOKENS = {"image_token": "<image>", "video_token": "<video>"}
"""Those that the processor reads as attributes of its tokenizer."""
IMAGE_BLOCKS = {
    "<|vision_start|><|image_pad|><|vision_end|>": "<image>\\n",
    "<|vision_start|><|video_pad|><|vision_end|>": "<video>\\n",
}
"""What stands for images in ChatML as Qwen2-VL writes it, and what LLaVA-OneVision writes in its place."""


def build_processor(tokenizer: Any) -> Any:
    """A `LlavaOnevisionProcessor`."""
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    size = {"height": SIDE, "width": SIDE}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=RESOLUTIONS),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=TOKENS,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=tokenizer.chat_template,
    )


def build_model(tokenizer: Any, size: TinySize) -> Any:
    """A `LlavaOnevisionForConditionalGeneration` on a Qwen2 with random float32 weights."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, set_seed

    ids = tokenizer.convert_tokens_to_ids
    config = LlavaOnevisionConfig(
        text_config={
            **size.text(len(tokenizer)),
            "model_type": "qwen2",
            "tie_word_embeddings": True,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config=siglip(SIDE, PATCH_SIZE),
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        image_grid_pinpoints=RESOLUTIONS,
        tie_word_embeddings=True,
    )
    set_seed(size.seed)
    return LlavaOnevisionForConditionalGeneration(config)
