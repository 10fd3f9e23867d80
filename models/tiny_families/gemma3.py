"""A tiny Gemma 3: layers with a sliding window, images of which every token sees every other."""

from typing import Any

from models.tiny_families.size import TinySize, siglip

SIDE = 32
"""Of an image after resizing, in pixels: 16 patches, pooled to 4 tokens."""
PATCH_SIZE = 8
TOKENS_PER_IMAGE = 4
WINDOW = 24

ROLES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
SPECIAL_TOKENS = (
    *ROLES.values(),
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
NAMED_TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
"""Those that the processor reads as attributes of its tokenizer."""

# Turns as Gemma writes them.
_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- 'TURN' + role + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- 'IMAGE' -}}{%- else -%}{{- part['text'] | trim -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- 'END\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'TURNmodel\\n' -}}{%- endif -%}
"""


def chat_template(turn: str, end: str, image: str) -> str:
    """A chat template with these tokens."""
    return _TEMPLATE.replace("TURN", turn).replace("END", end).replace("IMAGE", image)


CHAT_TEMPLATE = chat_template("<start_of_turn>", "<end_of_turn>", "<start_of_image>")


def build_processor(tokenizer: Any) -> Any:
    """A `Gemma3Processor`: each image becomes a square."""
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        image_seq_length=TOKENS_PER_IMAGE,
        chat_template=tokenizer.chat_template,
    )


def build_model(tokenizer: Any, size: TinySize) -> Any:
    """A `Gemma3ForConditionalGeneration` with random float32 weights."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, set_seed

    ids = tokenizer.convert_tokens_to_ids
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3Config(
        text_config={
            **size.text(len(tokenizer)),
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "layer_types": [kinds[layer % 2] for layer in range(size.layers)],
            "eos_token_id": ids("<eos>"),
            "pad_token_id": ids("<pad>"),
            "bos_token_id": ids("<bos>"),
        },
        vision_config=siglip(SIDE, PATCH_SIZE),
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    set_seed(size.seed)
    model = Gemma3ForConditionalGeneration(config)
    # It starts as zeros: images would say nothing, and no gradient would reach the tower.
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    torch.nn.init.normal_(projection, std=size.initializer_range)
    return model
