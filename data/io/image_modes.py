"""Pictures as a person sees them: every Pillow mode becomes RGB, transparent parts white, more bits scaled to eight.

Pillow's own `convert("RGB")` drops transparency, which shows the colour that lies hidden below it, often black, and
cuts values of more than eight bits off, which makes nearly all of them white.
"""

import numpy as np
from PIL import Image

WHITE = (255, 255, 255, 255)
MAX_16_BIT, MAX_12_BIT, MAX_8_BIT = 65_535, 4_095, 255
DEEP_GREY = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of one channel with more than eight bits."""
DIM = 16.0
"""Fractions up to less than this, but above 1, may be brightness beyond white, or a nearly black picture."""
_STEPS_OF_LOW_DEPTH = {"L;2": 85, "L;4": 17}
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262  # of TIFF


class ModeError(ValueError):
    """Values that no one could say the brightness of."""


def prepare(image: Image.Image) -> int | None:
    """Takes what is only known before decoding: returns the value of white, where the file says it.

    Also puts PNG's transparent colour, which is stored in the file's depth, into the depth that is decoded to.
    """
    rawmode = _rawmode(image)
    key = image.info.get("transparency")
    if rawmode in _STEPS_OF_LOW_DEPTH and isinstance(key, int):
        image.info["transparency"] = key * _STEPS_OF_LOW_DEPTH[rawmode]
    if rawmode == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)  # as Pillow reads the pixels
    if rawmode == "I;12":
        return MAX_12_BIT
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return MAX_16_BIT
    return None


def _rawmode(image: Image.Image) -> str | None:
    """How the pixels lie in a PNG or TIFF file."""
    tiles = getattr(image, "tile", ())
    if image.format not in ("PNG", "TIFF") or not tiles:
        return None
    arguments = tiles[0][3]
    return arguments if isinstance(arguments, str) else arguments[0]


def as_seen(image: Image.Image, white: int | None = None) -> Image.Image:
    """An RGB picture without metadata, of a decoded image of any mode.

    Args:
        white: from `prepare`. Otherwise integers up to 255 count as eight bits and up to 65,535 as sixteen; fractions
            up to 1 as shares of white, and others up to 255 as eight bits.

    Raises:
        ModeError: NaN, infinity, negative values, or a range whose white cannot be told.
    """
    if image.mode in DEEP_GREY:
        seen = Image.fromarray(_eight_bits(image, white)).convert("RGB")
    elif image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        seen = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), rgba).convert("RGB")
    else:
        seen = image.convert("RGB")
    seen.info = {}
    return seen


def _eight_bits(image: Image.Image, white: int | None) -> np.ndarray:
    """uint8 (H, W): values scaled so that white becomes 255; a transparent value becomes white."""
    values = np.asarray(image)
    if white is None:
        white = _white_of_fractions(values) if image.mode == "F" else _white_of_integers(values)
    levels = np.rint(values * np.float32(MAX_8_BIT / white)).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = MAX_8_BIT - levels
    key = image.info.get("transparency")
    if isinstance(key, int):
        levels[values == key] = MAX_8_BIT
    return levels


def _white_of_integers(values: np.ndarray) -> int:
    darkest, brightest = int(values.min()), int(values.max())
    if darkest < 0 or brightest > MAX_16_BIT:
        raise ModeError(
            f"32-bit values from {darkest} to {brightest}: expected 0 to {MAX_8_BIT}, or 0 to {MAX_16_BIT}; which of "
            "them is white cannot be told"
        )
    return MAX_8_BIT if brightest <= MAX_8_BIT else MAX_16_BIT


def _white_of_fractions(values: np.ndarray) -> int:
    if not np.isfinite(values).all():
        raise ModeError("values that are NaN or infinite: expected finite ones, 0 to 1 or 0 to 255")
    darkest, brightest = float(values.min()), float(values.max())
    dim = 1 < brightest < DIM and not np.array_equal(values, np.rint(values))
    if darkest < 0 or brightest > MAX_8_BIT or dim:
        raise ModeError(
            f"floating-point values from {darkest:g} to {brightest:g}: expected 0 to 1, or 0 to {MAX_8_BIT}; which of "
            "them is white cannot be told"
        )
    return 1 if brightest <= 1 else MAX_8_BIT
