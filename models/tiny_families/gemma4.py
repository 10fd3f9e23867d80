"""A tiny Gemma 4: embeddings for each layer, layers that reuse keys, and images of which every token sees every other
in layers with a sliding window only."""

from dataclasses import replace
from typing import Any

from models.tiny_families.gemma3 import ROLES, WINDOW, chat_template
from models.tiny_families.size import TinySize

PATCH_SIZE = 8
POOLED = 3
"""A visual token is made of this many patches in height and width."""
MOST_TOKENS = 70
"""Of an image: the fewest that its processor allows."""
LAYERS = 4
"""At least: two of each kind, of which the last reuses keys of the one before it."""

SPECIAL_TOKENS = (
    *ROLES.values(),
    "<|turn>",
    "<turn|>",
    "<|image>",
    "<image|>",
    "<|image|>",
    "<|audio>",
    "<audio|>",
    "<|audio|>",
    "<|video|>",
)
NAMED_TOKENS = {
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "image_token": "<|image|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "audio_token": "<|audio|>",
}
"""Those that the processor reads as attributes of its tokenizer."""

CHAT_TEMPLATE = chat_template("<|turn>", "<turn|>", "<|image|>")


def build_processor(tokenizer: Any) -> Any:
    """A `Gemma4Processor`: images are enlarged to nearly `MOST_TOKENS`."""
    from transformers import Gemma4AudioFeatureExtractor, Gemma4ImageProcessor, Gemma4Processor, Gemma4VideoProcessor

    sizes = {"patch_size": PATCH_SIZE, "max_soft_tokens": MOST_TOKENS, "pooling_kernel_size": POOLED}
    return Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(**sizes),
        video_processor=Gemma4VideoProcessor(**sizes),
        tokenizer=tokenizer,
        image_seq_length=MOST_TOKENS,
        chat_template=tokenizer.chat_template,
    )


def build_model(tokenizer: Any, size: TinySize) -> Any:
    """A `Gemma4ForConditionalGeneration` without audio, with random float32 weights."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration, set_seed

    size = replace(size, layers=max(size.layers, LAYERS) // 2 * 2)  # the last layer has full attention
    ids = tokenizer.convert_tokens_to_ids
    config = Gemma4Config(
        text_config={
            **size.text(len(tokenizer)),
            "vocab_size_per_layer_input": len(tokenizer),
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 1,
            "head_dim": 32,
            "global_head_dim": 32,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * (size.layers // 2),
            "use_bidirectional_attention": "vision",
            "eos_token_id": ids("<eos>"),
            "pad_token_id": ids("<pad>"),
            "bos_token_id": ids("<bos>"),
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": PATCH_SIZE,
            "pooling_kernel_size": POOLED,
            "position_embedding_size": 256,
            "initializer_range": size.initializer_range,
        },
        audio_config=None,
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        boa_token_id=ids("<|audio>"),
        eoa_token_index=ids("<audio|>"),
        audio_token_id=ids("<|audio|>"),
    )
    set_seed(size.seed)
    return Gemma4ForConditionalGeneration(config)
