"""Answers of a vision-language model to conversations with images, in batches, without a trainer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from data.errors import UserError
from data.rows.messages import message_texts
from models.decoding.engine import Engine, rolling_out
from models.families.loading import image_token_ids, image_tokens, render

Conversation = list[dict[str, Any]]


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switches a model to evaluation and back to what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def with_image_blocks(conversation: Conversation, images: Sequence[Image.Image]) -> Conversation:
    """Puts an image block for each image before the text of the first user turn, where that is plain text."""
    placed = []
    waiting = len(images)
    for message in conversation:
        content = message["content"]
        if message["role"] == "user" and isinstance(content, str):
            content = [{"type": "image"}] * waiting + [{"type": "text", "text": content}]
            waiting = 0
        placed.append({**message, "content": content})
    contents = [message["content"] for message in placed if isinstance(message["content"], list)]
    places = sum(part.get("type") == "image" for content in contents for part in content)
    if places != len(images):
        raise ValueError(f"number of images: expected {places} (places in the conversation), found {len(images)}")
    return placed


def prepare_inputs(
    processor: Any, conversations: Sequence[Conversation], images: Sequence[Sequence[Image.Image]]
) -> Any:
    """Left-padded model inputs of conversations that end with the user's turn.

    Args:
        images: of each conversation, in order; placed before its first user text.

    Raises:
        UserError: a text with a token that stands for pictures.
    """
    for conversation in conversations:
        check_texts(processor, conversation)
    texts = [
        render(processor, with_image_blocks(conversation, pictures), add_generation_prompt=True)
        for conversation, pictures in zip(conversations, images, strict=True)
    ]
    return read_rendered(processor, texts, images)


def check_texts(processor: Any, conversation: Sequence[dict[str, Any]], where: str = "") -> None:
    """Raises `UserError` for a text with a token that stands for pictures in the model's family.

    Args:
        where: the conversation is, for the message.
    """
    reserved = image_tokens(processor)
    for text in message_texts(conversation):
        found = next((token for token in reserved if token in text), None)
        if found is not None:
            raise UserError(f"the text contains {found}, which promises an image: {text!r:.200}", where)


def read_rendered(processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Any:
    """Left-padded model inputs of conversations that a chat template has rendered, and of the images of each."""
    of_rows = [list(pictures) for pictures in images] if any(images) else None  # some families take no flat list
    start = processor.tokenizer.bos_token
    written = start is not None and texts[0].startswith(start)  # by the template, and not to be written again
    return processor(
        text=list(texts),
        images=of_rows,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        **({"add_special_tokens": False} if written else {}),
    )


def generate(
    model: Any,
    processor: Any,
    conversations: Sequence[Conversation],
    images: Sequence[Sequence[Image.Image]],
    max_new_tokens: int = 256,
    num_generations: int = 1,
    temperature: float = 0.0,
) -> list[list[str]]:
    """Completions of one batch of conversations, each read once for all its completions.

    Args:
        temperature: 0 takes the most likely token each time.

    Returns:
        For each conversation, `num_generations` texts without special tokens.
    """
    inputs = prepare_inputs(processor, conversations, images).to(model.device)
    plain = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}  # whatever the model's own configuration says
    sampling = {"do_sample": True, "temperature": temperature, **plain} if temperature > 0 else {}
    with torch.inference_mode(), evaluating(model), rolling_out(model, Engine()):
        output = model.generate(
            **inputs,
            **(sampling or {"do_sample": False}),
            num_return_sequences=num_generations,
            max_new_tokens=max_new_tokens,
            suppress_tokens=image_token_ids(processor),
        )
    completions = output[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(completions, skip_special_tokens=True)
    return [texts[start : start + num_generations] for start in range(0, len(texts), num_generations)]


def yes_or_no(question: str) -> Conversation:
    """What is asked about an image, to be answered by one of two words."""
    return [{"role": "user", "content": f"{question} Answer yes or no."}]


def answers_yes(model: Any, processor: Any, images: Sequence[Image.Image], question: str) -> list[bool]:
    """For each image, whether the model finds "yes" a more likely first word than "no".

    Tokens that stand for pictures are left out of the question: they would promise an image that is not there.
    """
    for token in image_tokens(processor):
        question = " ".join(question.split(token)).strip()
    inputs = prepare_inputs(processor, [yes_or_no(question)] * len(images), [[image] for image in images]).to(
        model.device
    )
    with torch.inference_mode(), evaluating(model):
        logits = model(**inputs, logits_to_keep=1).logits[:, -1]  # (images, vocabulary)
    first_tokens = [
        [processor.tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in (word, word.capitalize())]
        for word in ("yes", "no")
    ]
    best = [logits[:, ids].max(dim=1).values for ids in first_tokens]
    return (best[0] > best[1]).tolist()
