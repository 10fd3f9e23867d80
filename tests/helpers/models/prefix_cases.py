"""Batches of rows with repeated prompts, and the plain way to score them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    set_seed,
)
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from models.families.base import IMAGE_INPUTS, Family, ImageTensors
from models.families.registry import family_of
from models.shared_prefix import fork
from models.shared_prefix.packing import Rows, continuation_log_probs, pack_continuations
from models.tiny import build_chatml_tokenizer, build_fast_tokenizer, build_model, build_tokenizer
from models.tiny_families import gemma3, gemma4, idefics, internvl, llava_onevision, qwen3_5, qwen3_vl
from models.tiny_families.size import TinySize

PATCH_WIDTH = 3 * 2 * 8 * 8


@dataclass(frozen=True)
class Prompt:
    """Text tokens before each image and at the end, and the grids (patches) of the images. In families of tiles, an
    image has one for each two rows of patches."""

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


def tiny_qwen3_vl(attention: str = "sdpa", seed: int = 0):
    """A tiny Qwen3-VL with the vocabulary and the patches of the tiny Qwen2-VL."""
    model = qwen3_vl.build_model(build_tokenizer(["a"], 300), TinySize(32, seed=seed))
    model.set_attn_implementation(attention)
    return model


def tiny_qwen3_5(attention: str = "sdpa", seed: int = 0):
    """A tiny Qwen3.5 with the same."""
    model = qwen3_5.build_model(build_tokenizer(["a"], 300), TinySize(32, seed=seed))
    model.set_attn_implementation(attention)
    return model


def tiny_mixture(attention: str = "sdpa", seed: int = 0, family: ModuleType = qwen3_vl):
    """A tiny Qwen3-VL or Qwen3.5 with a mixture of experts, with the same."""
    model = family.build_mixture(build_tokenizer(["a"], 300), TinySize(32, seed=seed))
    model.set_attn_implementation(attention)
    return model


def tiny_internvl(attention: str = "sdpa", seed: int = 0):
    """A tiny InternVL with a vocabulary of bytes."""
    model = internvl.build_model(build_chatml_tokenizer(["a"], 300, internvl), TinySize(32, seed=seed))
    model.set_attn_implementation(attention)
    return model


def tiny_idefics(attention: str = "sdpa", seed: int = 0, kind: str = "idefics3"):
    """A tiny Idefics3 or SmolVLM with the same."""
    build = idefics.build_model if kind == "idefics3" else idefics.build_smolvlm_model
    model = build(build_fast_tokenizer(["a"], 320, idefics), TinySize(32, seed=seed))
    model.set_attn_implementation(attention)
    return model


def tiny_smolvlm(attention: str = "sdpa", seed: int = 0):
    return tiny_idefics(attention, seed, "smolvlm")


def tiny_gemma3(attention: str = "sdpa", seed: int = 0, family: ModuleType = gemma3):
    """A tiny Gemma 3 or 4 with the same."""
    model = family.build_model(build_fast_tokenizer(["a"], 300, family), TinySize(32, seed=seed))
    model.set_attn_implementation(attention)
    return model


def tiny_gemma4(attention: str = "sdpa", seed: int = 0):
    return tiny_gemma3(attention, seed, gemma4)


def tiny_llava_onevision(attention: str = "sdpa", seed: int = 0):
    """A tiny LLaVA-OneVision with the same."""
    tokenizer = build_chatml_tokenizer(["a"], 300, llava_onevision)
    model = llava_onevision.build_model(tokenizer, TinySize(32, seed=seed))
    model.set_attn_implementation(attention)
    return model


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "qwen2_vl": tiny_qwen2_vl,
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "qwen3_5": tiny_qwen3_5,
    "internvl": tiny_internvl,
    "idefics3": tiny_idefics,
    "smolvlm": tiny_smolvlm,
    "gemma3": tiny_gemma3,
    "gemma4": tiny_gemma4,
    "llava_onevision": tiny_llava_onevision,
    "qwen3_vl_moe": partial(tiny_mixture, family=qwen3_vl),
    "qwen3_5_moe": partial(tiny_mixture, family=qwen3_5),
}
"""What makes a tiny model, by its model type."""


def in_double(model: nn.Module) -> nn.Module:
    """The model in float64, with one expert after the other: the kernel of all experts does not know it."""
    if "_moe" in model.config.model_type:
        model.set_experts_implementation("eager")
    return model.double()


@contextmanager
def double() -> Iterator[None]:
    """Computes in float64 also where models and losses ask for float32."""
    places = [(torch.Tensor, "to"), (torch.Tensor, "float"), (torch, "zeros"), (torch, "full")]
    places.append((nn.functional, "softmax"))
    kept = [getattr(*place) for place in places]

    def widened(function):
        def call(*args, **kwargs):
            args = [torch.float64 if one is torch.float32 else one for one in args]
            kwargs = {name: torch.float64 if one is torch.float32 else one for name, one in kwargs.items()}
            return function(*args, **kwargs)

        return call

    for place, function in zip(places, kept, strict=True):
        setattr(*place, torch.Tensor.double if place[1] == "float" else widened(function))
    try:
        yield
    finally:
        for place, function in zip(places, kept, strict=True):
            setattr(*place, function)


def _patches(grid: tuple[int, int], rng: np.random.Generator) -> list[ImageTensors]:
    height, width = grid
    pixels = torch.from_numpy(rng.normal(size=(height * width, PATCH_WIDTH)).astype(np.float32))
    return [{"pixel_values": pixels, "image_grid_thw": torch.tensor([1, height, width])}]


def _tiles(grid: tuple[int, int], rng: np.random.Generator) -> list[ImageTensors]:
    shape = (grid[0] // 2, 3, internvl.SIDE, internvl.SIDE)
    return [{"pixel_values": tile} for tile in torch.from_numpy(rng.normal(size=shape).astype(np.float32))]


def _masked_tiles(grid: tuple[int, int], rng: np.random.Generator) -> list[ImageTensors]:
    """Of which some are padded at the bottom."""
    mask = torch.ones(idefics.SIDE, idefics.SIDE, dtype=torch.long)
    mask[2 * grid[1] :] = 0
    return [{**tile, "pixel_attention_mask": mask} for tile in _tiles(grid, rng)]


def _square(grid: tuple[int, int], rng: np.random.Generator) -> list[ImageTensors]:
    return _tiles((2, 2), rng)


def _padded_patches(grid: tuple[int, int], rng: np.random.Generator) -> list[ImageTensors]:
    """A token for each 2 x 2 of the grid, of which there may be 6; each of another colour, as noise is all the same to
    the tower."""
    height, width = (gemma4.POOLED * size // 2 for size in grid)
    missing = 6 * gemma4.POOLED**2 - height * width
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1)
    colours = torch.from_numpy(rng.normal(size=(height, width, 3)).astype(np.float32))
    across, down = (places // gemma4.POOLED).unbind(dim=1)
    pixels = colours[down, across].repeat(1, gemma4.PATCH_SIZE**2)
    places = torch.nn.functional.pad(places, (0, 0, 0, missing), value=-1)
    return [{"pixel_values": torch.nn.functional.pad(pixels, (0, 0, 0, missing)), "image_position_ids": places}]


def _picture_and_tiles(grid: tuple[int, int], rng: np.random.Generator) -> list[ImageTensors]:
    size = [8 * side for side in grid]
    tiles = image_size_to_num_patches(size, llava_onevision.RESOLUTIONS, llava_onevision.SIDE)
    pixels = torch.stack([one["pixel_values"] for one in _tiles((2 * tiles, 2), rng)])
    return [{"pixel_values": pixels, "image_sizes": torch.tensor(size)}]


_PICTURES = {
    "internvl": _tiles,
    "idefics3": _masked_tiles,
    "smolvlm": _masked_tiles,
    "gemma3": _square,
    "gemma4": _padded_patches,
    "llava_onevision": _picture_and_tiles,
}
_TYPES = {"gemma3": "token_type_ids"} | dict.fromkeys(("gemma4", "qwen2_vl", "qwen2_5_vl"), "mm_token_type_ids")
_TYPES |= dict.fromkeys(("qwen3_vl", "qwen3_5", "qwen3_vl_moe", "qwen3_5_moe"), "mm_token_type_ids")


def pictures_of(prompt: Prompt, model) -> list[list[ImageTensors]]:
    """The tensors of each picture of a prompt: of one image, or of several tiles."""
    rng, make = np.random.default_rng(prompt.seed), _PICTURES.get(model.config.model_type, _patches)
    found = [make(grid, rng) for grid in prompt.grids]
    if make is _picture_and_tiles and len(found) > 1:  # which has tiles of the only one alone
        found = [[{**one, "pixel_values": one["pixel_values"][:1]} for one in picture] for picture in found]
    wide = {"pixel_values": model.dtype}
    return [[{k: v.to(wide.get(k, v.dtype)) for k, v in one.items()} for one in picture] for picture in found]


def laid_out(images: list[list[ImageTensors]], model) -> dict[str, torch.Tensor]:
    """Images of rows as the family's processor lays them out."""
    flat = [image for of_row in images for image in of_row]
    if not flat or "pixel_attention_mask" not in flat[0]:
        return family_of(model.config).join(flat)
    most = max(map(len, images))
    rows = {name: value.new_zeros(len(images), most, *value.shape) for name, value in flat[0].items()}
    for row, of_row in enumerate(images):
        for place, image in enumerate(of_row):
            for name, value in image.items():
                rows[name][row, place] = value
    return rows


def _prompt_tokens(prompt: Prompt, model) -> list[int]:
    family, rng = family_of(model.config), np.random.default_rng(prompt.seed)
    pictures = pictures_of(prompt, model)
    tokens: list[int] = []
    for place, size in enumerate(prompt.texts):
        tokens += rng.integers(0, 250, size).tolist()
        if place < len(pictures):
            count = sum(family.visual_tokens(model.config, image) for image in pictures[place])
            tokens += [model.config.image_token_id] * count
    return tokens


def write(batch: Batch, model) -> tuple[dict[str, torch.Tensor], int, list[int], list[int]]:
    """The batch as a plain model takes it, pixels repeated row by row.

    Returns:
        Inputs, number of columns of the continuations, number of images (or tiles) of each row, tokens of each row's
        prompt.
    """
    image_id, pad = model.config.image_token_id, model.config.text_config.pad_token_id
    prompts = [_prompt_tokens(prompt, model) for prompt in batch.prompts]
    images = [[one for picture in pictures_of(prompt, model) for one in picture] for prompt in batch.prompts]
    rng = np.random.default_rng(len(batch.rows))
    longest = max(len(prompts[number]) for number, _ in batch.rows)
    width = max(1, max(size for _, size in batch.rows)) + batch.right
    ids, mask = [], []
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
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if model.config.model_type in _TYPES:
        inputs[_TYPES[model.config.model_type]] = (inputs["input_ids"] == image_id).long()
    inputs |= laid_out([images[number] for number, _ in batch.rows], model)
    if "image_sizes" in inputs:
        counts = [len(images[number]) for number, _ in batch.rows]
        inputs["batch_num_images"] = torch.tensor([count for count in counts if count])
    return (
        inputs,
        width,
        [len(images[number]) for number, _ in batch.rows],
        [len(prompts[number]) for number, _ in batch.rows],
    )


def prompts_of(batch: Batch, model) -> dict[str, torch.Tensor]:
    """Inputs that end with the prompts."""
    inputs, width, _, _ = write(batch, model)
    return {
        name: value if name in (*IMAGE_INPUTS, "batch_num_images") else value[:, :-width]
        for name, value in inputs.items()
    }


def as_rows(model, inputs: dict[str, torch.Tensor], images: list[int], prompts: list[int]) -> Rows:
    """The same batch for `pack_continuations`."""
    found = iter(family_of(model.config).split(inputs))
    of_rows = [[next(found) for _ in range(count)] for count in images]
    return Rows.of(inputs["input_ids"], inputs["attention_mask"], prompts, of_rows)


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


# -- both ways, compared ----------------------------------------------------------------------------------------------

TOLERANCE = 5e-6

MIXED = Batch(
    (Prompt((3, 5), ((4, 6),), 1), Prompt((7,), (), 2), Prompt((2, 3, 4), ((4, 4), (2, 8)), 3)),
    ((0, 4), (1, 3), (0, 1), (2, 5), (0, 0), (2, 5), (1, 3)),
    left=2,
    right=1,
)


SHARED_IMAGES = Batch(  # of which the first stands in two prompts, and the prompts repeat out of order
    (Prompt((3, 5), ((4, 6),), 1), Prompt((4, 5), ((4, 6),), 1), Prompt((2, 3, 4), ((4, 4), (2, 8)), 3)),
    ((2, 4), (0, 3), (1, 1), (2, 5), (0, 0), (1, 5)),
    left=1,
    right=1,
)


@st.composite
def batches(draw, between: bool = True, text: int = 6, rest: int = 6) -> Batch:
    """Up to 7 rows of up to 3 prompts with up to 2 images; lengths from 0, padding on both sides.

    Args:
        between: padding may also stand between a prompt and its continuation.
        text, rest: most tokens of a prompt's text at its end, and of a continuation.
    """
    prompts = []
    for _ in range(draw(st.integers(1, 3))):
        grids = draw(st.lists(st.sampled_from([(2, 2), (2, 6), (4, 4), (6, 2)]), max_size=2))
        texts = [draw(st.integers(min(place, 1), 4)) for place in range(len(grids))] + [draw(st.integers(1, text))]
        prompts.append(Prompt(tuple(texts), tuple(grids), draw(st.integers(0, 2))))
    row = st.tuples(st.integers(0, len(prompts) - 1), st.integers(0, rest))
    rows = draw(st.lists(row, min_size=1, max_size=6))
    rows.append((rows[0][0], draw(st.integers(0, rest))))  # a prompt that repeats
    # Without images, models count padding between a prompt and its continuation as positions.
    right = between and any(prompt.grids for prompt in prompts) and draw(st.booleans())
    return Batch(tuple(prompts), tuple(rows), draw(st.integers(0, 2)), draw(st.integers(0, 2)), right)


def checkpointing(model: nn.Module, kind: str) -> None:
    """Gradient checkpointing: "off", "reentrant" or "not reentrant"."""
    model.gradient_checkpointing_disable()
    if kind != "off":
        model.gradient_checkpointing_enable({"use_reentrant": kind == "reentrant"})


def gradients(model: nn.Module, log_probs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a weighted sum of log-probabilities."""
    model.zero_grad()
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(0))
    (log_probs.float() * weights).sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def both_ways(model: nn.Module, batch: Batch) -> tuple[tuple, tuple]:
    """(log-probabilities, gradients) of the plain way and with shared prompts."""
    inputs, width, images, prompts = write(batch, model)
    if any(module.gradient_checkpointing for module in model.modules() if hasattr(module, "gradient_checkpointing")):
        model.enable_input_require_grads()
    plain = plain_log_probs(model, inputs, width, prompts)
    of_plain = gradients(model, plain)
    packed = pack_continuations(model, as_rows(model, inputs, images, prompts), width)
    if packed is None:  # next to nothing is left
        assert inputs["attention_mask"].sum() <= 1 + 2 * len(prompts)
        return (plain, of_plain), (plain, of_plain)
    shared, _ = continuation_log_probs(model, packed)
    return (plain, of_plain), (shared, gradients(model, shared))


def assert_same(plain: tuple, shared: tuple, tolerance: float = TOLERANCE) -> None:
    """Values differ by no more than the tolerance, and each parameter's gradient by no more than that part of it."""
    assert (plain[0] - shared[0]).abs().max() <= tolerance
    total = torch.stack([one.norm() for one in plain[1].values()]).norm()
    assert total == 0 or plain[1].keys() >= shared[1].keys()
    for name, one in plain[1].items():
        other = shared[1].get(name, torch.zeros_like(one))  # no gradient where nothing depends on a parameter
        assert (one - other).norm() <= tolerance * max(one.norm(), 1e-2 * total), name


# -- mistakes that values do not show ---------------------------------------------------------------------------------


def of_states(mistake):
    """What stands for `of_rows` of a state of linear attention, with a mistake in the states of its rows."""
    right = fork._State.of_rows

    def wrong(self, count):
        state = right(self, count)
        return fork._State(*mistake(state.convolution, state.recurrent))

    return wrong


def detached_deepstack(self, features, numbers) -> None:
    """What stands for `choose_images` of a family."""
    Family.choose_images(self, features, numbers)
    features.deepstack_features = [tuple(one.detach() for one in layer) for layer in features.deepstack_features]
