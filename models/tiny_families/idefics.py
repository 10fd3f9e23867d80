"""A tiny Idefics3 and a tiny SmolVLM, of one design: images cut into tiles, in one row of pixels for each prompt."""

from typing import Any

from models.tiny_families.size import TinySize

SIDE = 32
"""Of a tile, in pixels: 16 patches, shuffled to 4 tokens."""
PATCH_SIZE = 8
SCALE = 2
TOKENS_PER_TILE = 4
LONGEST_EDGE = 2 * SIDE
"""Of an image after resizing: four tiles, and a small picture of all of it."""

ROLES = {"pad_token": "<|endoftext|>", "eos_token": "<end_of_utterance>"}
NAMED_TOKENS: dict[str, str] = {}
SPECIAL_TOKENS = (
    *ROLES.values(),
    "<|im_start|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<video>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)

# As Idefics3 and SmolVLM write turns. As theirs, it knows texts as parts alone, and nothing of a plain one is written.
CHAT_TEMPLATE = """\
<|im_start|>
{%- for message in messages -%}
{{- message['role'] | capitalize -}}
{{- ':' if message['content'][0]['type'] == 'image' else ': ' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""


def _sizes() -> dict[str, Any]:
    return {"size": {"longest_edge": LONGEST_EDGE}, "max_image_size": {"longest_edge": SIDE}}


def build_processor(tokenizer: Any) -> Any:
    """An `Idefics3Processor`."""
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    return Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**_sizes(), do_image_splitting=True),
        tokenizer=tokenizer,
        image_seq_len=TOKENS_PER_TILE,
        chat_template=tokenizer.chat_template,
    )


def build_smolvlm_processor(tokenizer: Any) -> Any:
    """A `SmolVLMProcessor`. It needs the package num2words."""
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    return SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**_sizes(), do_image_splitting=True),
        video_processor=SmolVLMVideoProcessor(size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}),
        tokenizer=tokenizer,
        image_seq_len=TOKENS_PER_TILE,
        chat_template=tokenizer.chat_template,
    )


def _settings(tokenizer: Any, size: TinySize) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "text_config": {
            **size.text(len(tokenizer)),
            "model_type": "llama",
            "tie_word_embeddings": True,
            "eos_token_id": ids("<end_of_utterance>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH_SIZE,
            "initializer_range": size.initializer_range,
        },
        "image_token_id": ids("<image>"),
        "scale_factor": SCALE,
        "tie_word_embeddings": True,
    }


def build_model(tokenizer: Any, size: TinySize) -> Any:
    """An `Idefics3ForConditionalGeneration` with random float32 weights."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, set_seed

    set_seed(size.seed)
    return Idefics3ForConditionalGeneration(Idefics3Config(**_settings(tokenizer, size)))


def build_smolvlm_model(tokenizer: Any, size: TinySize) -> Any:
    """A `SmolVLMForConditionalGeneration` with random float32 weights."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, set_seed

    set_seed(size.seed)
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**_settings(tokenizer, size)))
