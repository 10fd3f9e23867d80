"""Batches of rows with repeated prompts, and the plain way to score them."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    set_seed,
)

from models.shared_prefix.packing import Rows, different_images
from models.tiny import build_model, build_tokenizer

PATCH_WIDTH = 3 * 2 * 8 * 8


@dataclass(frozen=True)
class Prompt:
    """Text tokens before each image and at the end, and the grids (patches) of the images."""

    texts: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    seed: int


@dataclass(frozen=True)
class Batch:
    """Rows of a batch: (prompt, tokens of the continuation) each."""

    prompts: tuple[Prompt, ...]
    rows: tuple[tuple[int, int], ...]
    left: int
    right: int
    prompt_padding_right: bool = False


def tiny_qwen2_vl(attention: str = "sdpa", seed: int = 0, **settings) -> Qwen2VLForConditionalGeneration:
    """0.1 M parameters, with a vocabulary of bytes."""
    model = build_model(build_tokenizer(["a"], 300), hidden_size=32, layers=2, seed=seed, vision_width=32, **settings)
    model.set_attn_implementation(attention)
    return model


def tiny_qwen2_5_vl(attention: str = "sdpa") -> Qwen2_5_VLForConditionalGeneration:
    """A tiny Qwen2.5-VL with the vocabulary and the patches of the tiny Qwen2-VL."""
    config = tiny_qwen2_vl().config.to_dict()
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1], "initializer_range": 0.08}
    text = {key: value for key, value in config["text_config"].items() if key not in ("model_type", "architectures")}
    tokens = {key: value for key, value in config.items() if key.endswith("_token_id")}
    set_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    model.set_attn_implementation(attention)
    return model


def _prompt_tokens(prompt: Prompt, image_id: int) -> list[int]:
    rng = np.random.default_rng(prompt.seed)
    tokens: list[int] = []
    for place, size in enumerate(prompt.texts):
        tokens += rng.integers(0, 250, size).tolist()
        if place < len(prompt.grids):
            height, width = prompt.grids[place]
            tokens += [image_id] * (height * width // 4)
    return tokens


def write(batch: Batch, model) -> tuple[dict[str, torch.Tensor], int, list[int], list[int]]:
    """The batch as a plain model takes it, pixels repeated row by row.

    Returns:
        Inputs, number of columns of the continuations, number of images of each row, tokens of each row's prompt.
    """
    image_id, pad = model.config.image_token_id, model.config.text_config.pad_token_id
    prompts = [_prompt_tokens(prompt, image_id) for prompt in batch.prompts]
    rng = np.random.default_rng(len(batch.rows))
    longest = max(len(prompts[number]) for number, _ in batch.rows)
    width = max(1, max(size for _, size in batch.rows)) + batch.right
    ids, mask, pixels, grids = [], [], [], []
    for number, size in batch.rows:
        prompt = prompts[number]
        spare = longest - len(prompt)
        left = 0 if batch.prompt_padding_right else spare
        continuation = rng.integers(0, 250, size).tolist()
        ids.append(
            [pad] * (batch.left + left) + prompt + [pad] * (spare - left) + continuation + [pad] * (width - size)
        )
        mask.append(
            [0] * (batch.left + left) + [1] * len(prompt) + [0] * (spare - left) + [1] * size + [0] * (width - size)
        )
        pictures = np.random.default_rng(batch.prompts[number].seed)
        for height, breadth in batch.prompts[number].grids:
            pixels.append(torch.from_numpy(pictures.normal(size=(height * breadth, PATCH_WIDTH)).astype(np.float32)))
            grids.append([1, height, breadth])
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == image_id).long()
    if pixels:
        inputs |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
    images = [len(batch.prompts[number].grids) for number, _ in batch.rows]
    return inputs, width, images, [len(prompts[number]) for number, _ in batch.rows]


def as_rows(inputs: dict[str, torch.Tensor], images: list[int], prompts: list[int]) -> Rows:
    """The same batch for `pack_continuations`."""
    pixels = grids = None
    numbers = []
    if "pixel_values" in inputs:
        numbers, pixels, grids = different_images(inputs["pixel_values"], inputs["image_grid_thw"])
    ends = np.cumsum([0, *images])
    of_row = [numbers[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
    return Rows(
        inputs["input_ids"], inputs["attention_mask"], prompts, of_row, pixels, grids, inputs["mm_token_type_ids"]
    )


def plain_log_probs(model, inputs: dict[str, torch.Tensor], width: int, prompts: list[int]) -> torch.Tensor:
    """(N, width): each row by itself with its own prompt and pixels; 0 for padding."""
    logits = model(**inputs, use_cache=False).logits.float()
    mask = inputs["attention_mask"] != 0
    places = torch.arange(mask.shape[1])
    previous = torch.where(mask, places, -1).cummax(dim=1).values.roll(1, dims=1)  # last real token before each column
    before = previous[:, -width:].clamp(min=0)
    chosen = logits.gather(1, before.unsqueeze(2).expand(-1, -1, logits.shape[2])).log_softmax(dim=2)
    tokens = inputs["input_ids"][:, -width:]
    return chosen.gather(2, tokens.unsqueeze(2)).squeeze(2) * mask[:, -width:]
