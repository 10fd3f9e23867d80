"""What a family of vision-language models has of its own, behind one interface; and what all others get.

A family is found by its model type (models/families/registry.py) and is a `KnownFamily`: it is known how its processor
lays images out and how its tokens see each other, so prompts can be shared. A model of any other is a `Family`: it
trains on the plain path, by what transformers' vision-language models have in common. Beside that, a family whose
prompts can be put together from pieces has `PromptPieces`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from data.io.pixel_bounds import BoundsError, ImageReader
from models.families.image_counts import ReadAsTheyAre
from models.shared_prefix.layout import PrefixLayout

TOWERS = ("visual", "vision_tower", "vision_model")
"""What models call their vision tower, and below what they call their language model."""
LANGUAGE_MODELS = ("language_model", "text_model")

IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes", "image_position_ids")
"""Model inputs that are of images, in any family; all others are of tokens."""
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Model inputs that say of each token whether it stands for a part of an image."""

ImageTensors = dict[str, torch.Tensor]
"""The processor's tensors of one image. In families that cut images into tiles, each with features of its own, they
are those of one tile: all that is said of images here holds for tiles."""

_OF_TEXT = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OF_TEXT += ("end_of_utterance_token",)


def child(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The first module among those directly below, which no wrapper passes on as its own."""
    below = dict(module.named_children())
    return next((below[name] for name in names if name in below), None)


def backbone_kind(config: Any) -> str:
    """The model type of a configuration; of a reward model's, that of its backbone."""
    return getattr(config, "backbone_type", config.model_type)


def not_known(config: Any) -> str:
    """Why prompts of a model of no known family are not shared."""
    return f"models of type {backbone_kind(config)!r} are not among those whose prompts can be shared"


class Family:
    """A family that has nothing of its own: its models train on the plain path.

    `blank_image` lets processes without images go on beside others.

    Attributes:
        image_tokens: tokens that stand for pictures, beside those that the processor names.
        patch_size: side of a patch of published models, in pixels, where `reader` resizes to whole patches.
        found_inputs: what the processor says of images beside what the model takes, and `encode` finds by itself.
    """

    image_tokens: ClassVar[tuple[str, ...]] = ()
    patch_size: ClassVar[int | None] = None
    found_inputs: ClassVar[tuple[str, ...]] = ()

    # -- the processor -----------------------------------------------------------------------------------------------

    def forbidden_tokens(self, processor: Any) -> list[str]:
        """Tokens that stand for pictures. In a text, one would promise an image that is not there."""
        tokenizer = getattr(processor, "tokenizer", processor)
        named = [*tokenizer.special_tokens_map.items(), *vars(processor).items()]  # both may have an `image_token`
        found = [
            token
            for name, token in named
            if name.endswith("_token") and name not in _OF_TEXT and isinstance(token, str)
        ]
        return list(dict.fromkeys((*self.image_tokens, *found)))

    def reader(self, processor: Any, most_pixels: int | None = None) -> ImageReader:
        """How images are read for the processor, and how many tokens they become.

        Args:
            most_pixels: width * height that none may exceed; by default what the processor allows.
        """
        return ReadAsTheyAre(processor, most_pixels)

    def set_bounds(self, processor: Any, low: int | None, high: int | None) -> None:
        """Bounds the width * height of images, in pixels; `None` leaves a bound as it is.

        Raises:
            BoundsError: the family has no such bounds, or the lower one is above the upper one.
        """
        asked = " and ".join(name for name, value in (("min_pixels", low), ("max_pixels", high)) if value is not None)
        raise BoundsError(
            f"{asked}: {type(processor).__name__} resizes images by rules of its own, and takes no such bounds; leave "
            "it out"
        )

    # -- the model ---------------------------------------------------------------------------------------------------

    def tower(self, combined: nn.Module) -> nn.Module:
        """What `freeze_vision_tower` freezes of the module that takes pixels and tokens."""
        return child(combined, TOWERS)

    def language_model(self, combined: nn.Module) -> nn.Module:
        return child(combined, LANGUAGE_MODELS)

    def blank_image(self, combined: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """What `get_image_features` takes for a small image, of the type and on the device of `like`.

        `None` where that is not known: then processes without images leave the vision tower out.
        """
        return None

    # -- images ------------------------------------------------------------------------------------------------------

    def show_nothing(self, pixel_values: torch.Tensor) -> bool:
        """Whether pixels are those of no image at all, which the vision tower cannot take."""
        return len(pixel_values) == 0

    def encode(self, encode: Callable[..., Any], **inputs: Any) -> Any:
        """What `encode`, the model's `get_image_features`, gives of images."""
        return encode(**inputs)

    def choose_images(self, features: Any, numbers: Sequence[int]) -> None:
        """Makes what `get_image_features` returned that of the images with these numbers, in their order.

        Features of images may be a tensor with a row for each, or a sequence of tensors. Some families have features
        for several layers of the language model (deepstack), each a tuple of images.
        """
        pooled = features.pooler_output
        whole = isinstance(pooled, torch.Tensor)
        features.pooler_output = pooled[list(numbers)] if whole else tuple(pooled[number] for number in numbers)
        layers = getattr(features, "deepstack_features", None)
        if layers is not None:
            features.deepstack_features = [tuple(layer[number] for number in numbers) for layer in layers]

    # -- shared prompts ----------------------------------------------------------------------------------------------

    def reason_not_shared(self, combined: nn.Module) -> str | None:
        """Why prompts of the model cannot be shared; `None` if they can."""
        return not_known(combined.config)

    # -- what is made of pictures alone (models/vision_towers.py) -----------------------------------------------------

    def features_of_pictures(
        self, combined: nn.Module, pictures: Sequence[dict[str, torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Of each picture, (tokens, layers, width): what a language model would see of it, in its first layer and in
        those that get features of their own. Pictures are encoded one by one.

        Args:
            pictures: of each, what `get_image_features` takes.
        """
        found = []
        for picture in pictures:
            features = combined.get_image_features(**picture, return_dict=True)
            layers = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
            found.append(torch.stack([_tokens_of(layer) for layer in layers], dim=1))
        return found


class KnownFamily(Family, ABC):
    """A family of which it is known how images and tokens are laid out, so that prompts can be shared.

    It says in which layers that is exact (`layer_kinds`), how many tokens an image has (`visual_tokens`), and what
    differs from here of: how the processor lays images out (`image_inputs`, `split`, `join`; `choose_images` for their
    features), and how tokens see each other and where they stand (`masks`, `positions`, `token_types`).

    Attributes:
        model_types: `config.model_type` of its models.
        layer_kinds: of attention, in which continuations can be kept apart.
        image_inputs: model inputs that are of images.
        images_anywhere: what tokens of images see is what came before them, so that continuations may have images too.
        types_input: model input that must say which tokens are of images also where positions and masks are given.
    """

    model_types: ClassVar[tuple[str, ...]]
    layer_kinds: ClassVar[tuple[str, ...]]
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    images_anywhere: ClassVar[bool] = True
    types_input: ClassVar[str | None] = None

    # -- images ------------------------------------------------------------------------------------------------------

    def split(self, inputs: Mapping[str, Any]) -> list[ImageTensors]:
        """The tensors of each image, of a processor's of all images of a batch; `join` puts them together again.

        Here each tensor has a row for each image.

        Args:
            inputs: `image_inputs`, and maybe others; without images they may be missing, `None` or empty.
        """
        tensors = self.of_images(inputs)
        rows = zip(*tensors.values(), strict=True)
        return [dict(zip(tensors, row, strict=True)) for row in rows]

    def join(self, images: Sequence[ImageTensors]) -> dict[str, torch.Tensor]:
        """Model inputs of images in their order, of which the features come in this order too; none of no image."""
        return {name: torch.stack([image[name] for image in images]) for name in images[0]} if images else {}

    def of_images(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Those of the inputs that are of images, by their names."""
        return {name: inputs[name] for name in self.image_inputs if inputs.get(name) is not None}

    @abstractmethod
    def visual_tokens(self, config: Any, image: ImageTensors) -> int:
        """How many tokens of a prompt an image stands at.

        Args:
            config: of the module that takes pixels and tokens.
        """

    def images_of_rows(
        self, config: Any, images: Sequence[ImageTensors], tokens: Sequence[int], counts: Sequence[int] | None = None
    ) -> list[list[int]]:
        """For each row, the numbers of its images, which come row by row.

        Args:
            config: of the module that takes pixels and tokens.
            tokens: of images, in each row.
            counts: pictures of each row, where that is known; of several tiles, one has several `images`.

        Raises:
            ValueError: rows have other tokens than images.
        """
        if counts is None or sum(counts) != len(images):
            return find_images([self.visual_tokens(config, image) for image in images], tokens)
        remaining = iter(range(len(images)))
        return [[next(remaining) for _ in range(count)] for count in counts]

    # -- shared prompts ----------------------------------------------------------------------------------------------

    def reason_not_shared(self, combined: nn.Module) -> str | None:
        layers = getattr(self.language_model(combined).config, "layer_types", None) or self.layer_kinds
        return None if set(layers) <= set(self.layer_kinds) else "the model has layers with a sliding window"

    def token_types(self, config: Any, ids: torch.Tensor) -> torch.Tensor:
        """1 at tokens of images, 2 at tokens of videos, 0 at others, in the shape of `ids`.

        Args:
            config: of the module that takes pixels and tokens.
        """
        types = (ids == config.image_token_id).long()
        video = getattr(config, "video_token_id", None)
        return types if video is None else types.masked_fill(ids == video, 2)

    def positions(self, combined: nn.Module, ids: torch.Tensor, images: Sequence[ImageTensors]) -> torch.Tensor:
        """(axes, T): positions of the T tokens of a row without padding.

        Args:
            ids: (T,); images: of the row, in order.
        """
        return torch.arange(len(ids)).unsqueeze(0)

    def masks(self, combined: nn.Module, layout: PrefixLayout, make: Callable[..., Any], types: torch.Tensor) -> Any:
        """What the language model takes as `attention_mask` for a packed sequence with this layout.

        Here the causal mask: transformers' mask functions hand on what has the four dimensions of a finished mask.

        Args:
            make: a mask of a table of each segment (`models.shared_prefix.attention.mask_for`); causal of none.
            types: (lines, width) of the packed sequence's tokens (`token_types`).
        """
        return make()

    def step_masks(self, text: Any, make: Callable[[int | None], Any]) -> Any:
        """What the language model takes as `attention_mask` for new tokens of a rollout.

        Args:
            text: configuration of the language model.
            make: a mask for layers with a window of so many tokens, or without one.
        """
        return make(None)


class PromptPieces(ABC):
    """What a family has beside, whose prompts are put together from pieces that are tokenised once, and whose keys and
    values are kept (rollouts/frozen_vlm).

    Attributes:
        image_block: how chat templates write an image: what is before its token, the token, what is after it.
        deepstack: images have features for several layers of the language model.
    """

    image_block: ClassVar[tuple[str, str, str]]
    deepstack: ClassVar[bool] = False

    @abstractmethod
    def reason_no_pieces(self, combined: nn.Module) -> str | None:
        """Why prompts of the model cannot be put together from pieces; `None` if they can."""

    @abstractmethod
    def token_grid(self, image_processor: Any, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens that an image of this (width, height) becomes."""

    def later_features(self, layers: Sequence[torch.Tensor], places: torch.Tensor) -> dict[str, Any]:
        """What the language model takes for the features of its layers after the first.

        Args:
            layers: of each, (image tokens, width); places: (B, L), where image tokens stand.
        """
        return {}


def _tokens_of(features: Any) -> torch.Tensor:
    """(tokens, width) of one picture, of a tensor with more dimensions or several of them."""
    parts = [features] if isinstance(features, torch.Tensor) else features
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def different_images(images: Sequence[ImageTensors]) -> tuple[list[int], list[ImageTensors]]:
    """Finds images with the same tensors, of which the first are the pixels.

    Returns:
        For each image its number among the different ones, and these.
    """
    numbers: list[int] = []
    kept: list[ImageTensors] = []
    alike: dict[tuple, list[int]] = {}
    for image, sample in zip(images, _samples(images), strict=True):
        others = alike.setdefault((*(tensor.shape for tensor in image.values()), sample), [])
        found = next((number for number in others if _same(kept[number], image)), None)
        if found is None:
            found = len(kept)
            kept.append(image)
            others.append(found)
        numbers.append(found)
    return numbers, kept


def _samples(images: Sequence[ImageTensors], size: int = 1024) -> list[bytes]:
    """Some values from the middle of each image's pixels: most different images differ there."""
    if not images:
        return []
    flat = [next(iter(image.values())).reshape(-1) for image in images]
    middles = [pixels[max(0, (len(pixels) - size) // 2) :][:size] for pixels in flat]
    together = torch.cat(middles).float().cpu()  # at once: each transfer waits for the device
    return [one.numpy().tobytes() for one in together.split([len(middle) for middle in middles])]


def _same(one: ImageTensors, other: ImageTensors) -> bool:
    return all(tensor is other[name] or torch.equal(tensor, other[name]) for name, tensor in one.items())


def find_images(sizes: Sequence[int], tokens: Sequence[int]) -> list[list[int]]:
    """For each row, the numbers of its images, which come row by row and are identified by their tokens.

    Args:
        sizes: tokens of each image; tokens: of images, in each row.

    Raises:
        ValueError: rows have other tokens than images.
    """
    ends = [0, *accumulate(sizes)]
    places = {end: number for number, end in enumerate(ends)}
    borders = [0, *accumulate(tokens)]
    if any(border not in places for border in borders) or borders[-1] != ends[-1]:
        raise ValueError(f"image tokens: expected {list(tokens)} in the rows, found images of {list(sizes)}")
    return [list(range(places[first], places[last])) for first, last in pairwise(borders)]


def feature_tensors(features: Any) -> list[torch.Tensor]:
    """All that `get_image_features` returned that goes into a language model."""
    found = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
    return [one for value in found for one in ([value] if isinstance(value, torch.Tensor) else value)]
