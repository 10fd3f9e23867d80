"""Known damages: each makes an item bad in one aspect, so that the agent for that aspect is the right answer."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from data.io.images import open_image
from data.reports.aspects import (
    ANSWERS,
    BLUR,
    EXACT_COPIES,
    EXPOSURE,
    NEAR_COPIES,
    RESOLUTION,
    SHAPE,
    TEXT_LENGTH,
    Aspect,
)
from data.reports.measurements import BLUR_WORKING_SIDE
from data.rows.words import count_words, first_words


@dataclass(frozen=True)
class Draft:
    """An item before it is written to a pool."""

    image: Image.Image
    question: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Damage:
    """A way to spoil an item.

    Attributes:
        aspect: the aspect in which the result stands out.
        apply: (draft, rng, answers that other items have) -> the damaged draft.
        copies: the result is put beside the original instead of in its place.
        needs_text: only for items that have a question and answers.
    """

    aspect: Aspect
    apply: Callable[[Draft, random.Random, list[str]], Draft]
    copies: bool = False
    needs_text: bool = False


def _blur(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    scale = max(1.0, max(draft.image.size) / BLUR_WORKING_SIDE)
    return replace(draft, image=draft.image.filter(ImageFilter.GaussianBlur(rng.uniform(1.8, 3.2) * scale)))


def _soft_upscale(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    width, height = draft.image.size
    factor = rng.uniform(3.0, 4.5) * max(1.0, max(draft.image.size) / BLUR_WORKING_SIDE)
    small = draft.image.resize((max(4, round(width / factor)), max(4, round(height / factor))), Image.Resampling.BOX)
    return replace(draft, image=small.resize((width, height), Image.Resampling.BICUBIC))


def _underexpose(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    return replace(draft, image=ImageEnhance.Brightness(draft.image).enhance(rng.uniform(0.08, 0.14)))


def _overexpose(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    """Bright enough to blow out at least four fifths of the pixels."""
    dark_fifth = float(np.quantile(np.asarray(draft.image.convert("L")), 0.2)) / 255
    gain = rng.uniform(1.1, 1.4) / max(dark_fifth, 0.02)
    return replace(draft, image=ImageEnhance.Brightness(draft.image).enhance(gain))


def _pixelate(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    width, height = draft.image.size
    block = rng.choice((2, 4))
    small = draft.image.resize((width // block, height // block), Image.Resampling.BOX)
    return replace(draft, image=small.resize((small.width * block, small.height * block), Image.Resampling.NEAREST))


def _shrink(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    share = rng.uniform(0.3, 0.5)
    size = tuple(max(8, round(side * share)) for side in draft.image.size)
    return replace(draft, image=draft.image.resize(size, Image.Resampling.LANCZOS))


def _pad(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    """Bars in the colour of a corner make a long strip of the image."""
    width, height = draft.image.size
    factor = rng.uniform(2.4, 3.5)
    size = (round(max(width, height) * factor), height) if width >= height else (width, round(height * factor))
    canvas = Image.new("RGB", size, draft.image.getpixel((0, 0)))
    canvas.paste(draft.image, (rng.randint(0, size[0] - width), rng.randint(0, size[1] - height)))
    return replace(draft, image=canvas)


def _copy(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    return draft


def _recompress(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    """A little darker, softer and compressed: never the best of the copies, which is the one that stays."""
    darker = ImageEnhance.Brightness(draft.image).enhance(rng.uniform(0.94, 0.98))
    scale = max(1.0, max(draft.image.size) / BLUR_WORKING_SIDE)
    encoded = io.BytesIO()
    darker.filter(ImageFilter.GaussianBlur(0.4 * scale)).save(encoded, "JPEG", quality=rng.randint(88, 96))
    return replace(draft, image=open_image(encoded.getvalue()))


def _cut_question(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    """One or two words are left. (None would be no question, which is not judged.)"""
    return replace(draft, question=first_words(draft.question, max(1, rng.randint(0, 2))))


def _repeat_question(draft: Draft, rng: random.Random, _: list[str]) -> Draft:
    times = 40 // max(1, count_words(draft.question)) + rng.randint(2, 4)
    return replace(draft, question=" ".join([draft.question] * times))


def _contradict(draft: Draft, rng: random.Random, other_answers: list[str]) -> Draft:
    """Six annotators, half of them with wrong answers: no answer has a clear majority."""
    wrong = [answer for answer in other_answers if answer not in draft.answers]
    answers = [draft.answers[0]] * 3 + [rng.choice(wrong) for _ in range(3)]
    rng.shuffle(answers)
    return replace(draft, answers=tuple(answers))


DAMAGES = {
    "blur": Damage(BLUR, _blur),
    "soft_upscale": Damage(BLUR, _soft_upscale),
    "underexposure": Damage(EXPOSURE, _underexpose),
    "overexposure": Damage(EXPOSURE, _overexpose),
    "pixelation": Damage(RESOLUTION, _pixelate),
    "shrinking": Damage(RESOLUTION, _shrink),
    "padding": Damage(SHAPE, _pad),
    "exact_copies": Damage(EXACT_COPIES, _copy, copies=True),
    "near_copies": Damage(NEAR_COPIES, _recompress, copies=True),
    "cut_questions": Damage(TEXT_LENGTH, _cut_question, needs_text=True),
    "repeated_questions": Damage(TEXT_LENGTH, _repeat_question, needs_text=True),
    "contradicting_answers": Damage(ANSWERS, _contradict, needs_text=True),
}
