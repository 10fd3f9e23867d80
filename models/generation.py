"""Answers of a vision-language model to conversations with images, in batches, without a trainer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""Qwen2-VL's tokens that stand for pictures. In generated text, one would promise an image that is not there."""

Conversation = list[dict[str, Any]]


def vision_token_ids(tokenizer) -> list[int]:
    """Ids of the vision tokens that this tokenizer has."""
    ids = [tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS]
    return [token_id for token_id in ids if token_id is not None and token_id != tokenizer.unk_token_id]


def load_vlm(name_or_path: str, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"):
    """Model and processor of a folder or Hub id, ready to generate.

    Args:
        device: where to put the model; by default an accelerator if there is one.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator or "cpu"
    model = AutoModelForImageTextToText.from_pretrained(name_or_path, dtype=dtype).to(device).eval()
    return model, AutoProcessor.from_pretrained(name_or_path, padding_side="left")


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switches a model to evaluation and back to what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _with_image_blocks(conversation: Conversation, images: Sequence[Image.Image]) -> Conversation:
    """Puts an image block for each image before the text of the first user turn, where that is plain text."""
    placed = []
    waiting = len(images)
    for message in conversation:
        content = message["content"]
        if message["role"] == "user" and isinstance(content, str):
            content = [{"type": "image"}] * waiting + [{"type": "text", "text": content}]
            waiting = 0
        placed.append({**message, "content": content})
    return placed


def prepare_inputs(processor, conversations: Sequence[Conversation], images: Sequence[Sequence[Image.Image]]):
    """Left-padded model inputs of conversations that end with the user's turn.

    Args:
        images: of each conversation, in order; placed before its first user text.
    """
    texts = [
        processor.apply_chat_template(
            _with_image_blocks(conversation, pictures), tokenize=False, add_generation_prompt=True
        )
        for conversation, pictures in zip(conversations, images, strict=True)
    ]
    flat = [picture for pictures in images for picture in pictures]
    return processor(text=texts, images=flat or None, padding=True, padding_side="left", return_tensors="pt")


def generate(
    model,
    processor,
    conversations: Sequence[Conversation],
    images: Sequence[Sequence[Image.Image]],
    max_new_tokens: int = 256,
    num_generations: int = 1,
    temperature: float = 0.0,
) -> list[list[str]]:
    """Completions of one batch of conversations.

    Args:
        temperature: 0 takes the most likely token each time.

    Returns:
        For each conversation, `num_generations` texts without special tokens.
    """
    inputs = prepare_inputs(processor, conversations, images).to(model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    with torch.inference_mode(), evaluating(model):
        output = model.generate(
            **inputs,
            **(sampling or {"do_sample": False}),
            num_return_sequences=num_generations,
            max_new_tokens=max_new_tokens,
            suppress_tokens=vision_token_ids(processor.tokenizer),
        )
    completions = output[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(completions, skip_special_tokens=True)
    return [texts[start : start + num_generations] for start in range(0, len(texts), num_generations)]


def answers_yes(model, processor, images: Sequence[Image.Image], question: str) -> list[bool]:
    """For each image, whether the model finds "yes" a more likely first word than "no"."""
    conversation = [{"role": "user", "content": f"{question} Answer yes or no."}]
    inputs = prepare_inputs(processor, [conversation] * len(images), [[image] for image in images]).to(model.device)
    with torch.inference_mode(), evaluating(model):
        logits = model(**inputs, logits_to_keep=1).logits[:, -1]  # (images, vocabulary)
    first_tokens = [
        [processor.tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in (word, word.capitalize())]
        for word in ("yes", "no")
    ]
    best = [logits[:, ids].max(dim=1).values for ids in first_tokens]
    return (best[0] > best[1]).tolist()
