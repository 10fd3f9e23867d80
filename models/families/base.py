"""What a family of vision-language models has of its own, behind one interface; and what all others get.

A family is found by its model type (models/families/registry.py). A model of any other is a `Family`: it trains on the
plain path, by what transformers' vision-language models have in common.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from data.io.pixel_bounds import BoundsError, ImageReader
from models.families.image_counts import ReadAsTheyAre
from models.shared_prefix.layout import PrefixLayout

TOWERS = ("visual", "vision_tower", "vision_model")
"""What models call their vision tower, and below what they call their language model."""
LANGUAGE_MODELS = ("language_model", "text_model")

_OF_TEXT = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OF_TEXT += ("end_of_utterance_token",)


def child(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The first module among those directly below, which no wrapper passes on as its own."""
    below = dict(module.named_children())
    return next((below[name] for name in names if name in below), None)


class Family:
    """A family that has nothing of its own: its models train on the plain path.

    Attributes:
        model_types: `config.model_type` of its models.
        image_tokens: tokens that stand for pictures, beside those that the processor names.
        patch_grids: the processor makes one long table of all images' patches, and says how each image's are arranged
            (`image_grid_thw`).
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    image_tokens: ClassVar[tuple[str, ...]] = ()
    patch_grids: ClassVar[bool] = False

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

    def reader(self, processor: Any) -> ImageReader:
        """How images are read for the processor, and how many tokens they become."""
        return ReadAsTheyAre(processor)

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

    # -- shared prompts ----------------------------------------------------------------------------------------------

    def reason_not_shared(self, combined: nn.Module) -> str | None:
        """Why prompts of the model cannot be shared; `None` if they can."""
        return f"models of type {combined.config.model_type!r} are not among those whose prompts can be shared"

    def positions(
        self, combined: nn.Module, ids: torch.Tensor, types: torch.Tensor, grids: torch.Tensor | None
    ) -> torch.Tensor:
        """(axes, T): positions of the T tokens of a row without padding.

        Args:
            ids: (T,); types: (T,), 1 at image tokens; grids: (images, 3), `None` if the row has no images.
        """
        return torch.arange(len(ids)).unsqueeze(0)

    def masks(self, combined: nn.Module, layout: PrefixLayout, mask: Any) -> Any:
        """What the language model takes as `attention_mask` for the mask of a packed sequence with this layout.

        Here the mask itself: transformers' mask functions hand on what has the four dimensions of a finished mask.
        """
        return mask

    def choose_images(self, features: Any, numbers: Sequence[int]) -> None:
        """Makes what `get_image_features` returned that of the images with these numbers, in their order.

        Some families have features for several layers of the language model (deepstack), each a tuple of images.
        """
        features.pooler_output = tuple(features.pooler_output[number] for number in numbers)
        layers = getattr(features, "deepstack_features", None)
        if layers is not None:
            features.deepstack_features = [tuple(layer[number] for number in numbers) for layer in layers]


def feature_tensors(features: Any) -> list[torch.Tensor]:
    """All that `get_image_features` returned that goes into a language model."""
    found = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
    return [one for value in found for one in ([value] if isinstance(value, torch.Tensor) else value)]
