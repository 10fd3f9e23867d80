"""Loading a Qwen2-VL and its processor, from a folder or the Hub."""

from data.io.pixel_bounds import BoundsError, PixelBounds
from models.hub_revisions import adapter_base
from models.model_paths import loading

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""Qwen2-VL's tokens that stand for pictures. In generated text, one would promise an image that is not there."""


def vision_token_ids(tokenizer) -> list[int]:
    """Ids of the vision tokens that this tokenizer has."""
    ids = [tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS]
    return [token_id for token_id in ids if token_id is not None and token_id != tokenizer.unk_token_id]


def load_vlm(name_or_path: str, device=None, dtype: str = "auto", revision: str | None = None):
    """Model and processor of a folder or Hub id, ready to generate. Adapters are put on the model that they name.

    Args:
        device: where to put the model; by default an accelerator if there is one.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        ModelError: there is no such model, or it is of another kind.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator or "cpu"
    with loading(name_or_path):
        base = adapter_base(name_or_path, revision)
        model = AutoModelForImageTextToText.from_pretrained(
            name_or_path,
            dtype=dtype,
            revision=revision if base is None else base.revision,
            adapter_kwargs={"revision": revision},
        )
        return model.to(device).eval(), load_processor(name_or_path, revision=revision)


def load_processor(
    name_or_path: str,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
):
    """The processor, padding on the left, with the pixel bounds of a recipe (by default its own).

    Of a model that reads texts only, its tokenizer.

    Args:
        revision: branch, tag or commit of a Hub repository.
        trust_remote_code: run the code that the repository holds.

    Raises:
        ModelError: there is no such model.
        BoundsError: a lower bound above the upper one.
    """
    from transformers import AutoProcessor

    with loading(name_or_path):
        processor = AutoProcessor.from_pretrained(
            name_or_path, padding_side="left", revision=revision, trust_remote_code=trust_remote_code
        )
    if min_pixels is None and max_pixels is None:
        return processor
    size = dict(processor.image_processor.size)
    low = size["shortest_edge"] if min_pixels is None else min_pixels
    high = size["longest_edge"] if max_pixels is None else max_pixels
    if low > high:
        raise BoundsError(f"min_pixels ({low}) must not exceed max_pixels ({high})")
    processor.image_processor.size = {"shortest_edge": low, "longest_edge": high}
    return processor


def pixel_bounds(processor) -> PixelBounds:
    """The bounds that a processor resizes images to."""
    size = processor.image_processor.size
    return PixelBounds(size["shortest_edge"], size["longest_edge"], processor.image_processor.patch_size)
