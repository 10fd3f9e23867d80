"""Tiny models of families that models/families/ does not know, with their real classes: each lays images out its way.

`llava` has a picture of one size each, `aya_vision` tiles and a processor that pads unless it is told not to,
`mistral3` sizes of images beside pixels that are filled up, `llava_next` a row of tiles for each image, filled up too.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from models.tiny import DEFAULT_CORPUS, build_chatml_tokenizer
from models.tiny_families.size import TinySize, siglip

SIZE = TinySize(hidden_size=32)
VOCABULARY = 400
SIDE = 32
"""Of a picture or a tile, in pixels: 16 patches."""
PATCH_SIZE = 8


def _tokenizer(image: str, *others: str) -> Any:
    """Of ChatML, in which an image is a token of its own."""
    turns = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    block = "<|vision_start|><|image_pad|><|vision_end|>"
    own = SimpleNamespace(
        SPECIAL_TOKENS=(*turns, image, *others), NAMED_TOKENS={"image_token": image}, IMAGE_BLOCKS={block: image}
    )
    return build_chatml_tokenizer(DEFAULT_CORPUS, VOCABULARY, own)


def _text(tokenizer: Any, model_type: str) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        **SIZE.text(len(tokenizer)),
        "model_type": model_type,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }


def _llava() -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = _tokenizer("<image>")
    square = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = LlavaConfig(
        text_config=_text(tokenizer, "llama"),
        vision_config=siglip(SIDE, PATCH_SIZE) | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config), processor


def _aya_vision() -> tuple[Any, Any]:
    from transformers import (
        AyaVisionConfig,
        AyaVisionForConditionalGeneration,
        AyaVisionProcessor,
        GotOcr2ImageProcessor,
    )

    of_images = ("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", "TILE")
    tokenizer = _tokenizer("<image>", *of_images)
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=2),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        img_size=SIDE,
        downsample_factor=2,
        chat_template=tokenizer.chat_template,
    )
    config = AyaVisionConfig(
        text_config=_text(tokenizer, "cohere2"),
        vision_config=siglip(SIDE, PATCH_SIZE),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        tie_word_embeddings=True,
    )
    return AyaVisionForConditionalGeneration(config), processor


def _mistral3() -> tuple[Any, Any]:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor, PixtralProcessor

    tokenizer = _tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 2 * SIDE}, patch_size=2 * PATCH_SIZE),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        spatial_merge_size=2,
        chat_template=tokenizer.chat_template,
    )
    vision = {"model_type": "pixtral", "image_size": 2 * SIDE, "patch_size": PATCH_SIZE, "head_dim": 16}
    vision |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config=_text(tokenizer, "mistral"),
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        tie_word_embeddings=True,
    )
    return Mistral3ForConditionalGeneration(config), processor


def _llava_next() -> tuple[Any, Any]:
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = _tokenizer("<image>")
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    square = {"height": SIDE, "width": SIDE}
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = LlavaNextConfig(
        text_config=_text(tokenizer, "llama"),
        vision_config=siglip(SIDE, PATCH_SIZE) | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_grid_pinpoints=pinpoints,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaNextForConditionalGeneration(config), processor


UNKNOWN: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "aya_vision": _aya_vision,
    "mistral3": _mistral3,
    "llava_next": _llava_next,
}
"""Model type -> what makes a tiny model, float32, and its processor."""


def write_unknown(family: str, folder: Path) -> Path:
    """Writes a tiny model and its processor, as `models.tiny` does."""
    from transformers import GenerationConfig, set_seed

    set_seed(SIZE.seed)
    model, processor = UNKNOWN[family]()
    tokenizer = processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
