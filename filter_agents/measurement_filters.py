"""Agents that compare measurements with bounds: sharpness, exposure, resolution, shape, texts, answers."""

from data.reports.aspects import ANSWERS, BLUR, EXPOSURE, RESOLUTION, SHAPE, TEXT_LENGTH
from filter_agents.base import BoundsAgent


class BlurFilter(BoundsAgent):
    """Quantity `blur`, 0 (sharp) to 1. Default: at most 0.75."""

    name = "blur_filter"
    description = "removes unsharp pictures"
    aspect = BLUR
    limits = ((0, 1),)


class ExposureFilter(BoundsAgent):
    """Quantities `brightness` and `clipping` (share of white pixels), 0 to 1. Default: at least 0.15, at most 0.7."""

    name = "exposure_filter"
    description = "removes under- and overexposed pictures"
    aspect = EXPOSURE
    limits = ((0, 1), (0, 1))


class ResolutionFilter(BoundsAgent):
    """Quantity `side`, effective pixels of the shorter side. Default: at least 0.6 of the pool's median."""

    name = "resolution_filter"
    description = "removes low-resolution pictures"
    aspect = RESOLUTION
    limits = ((0, None),)


class AspectRatioFilter(BoundsAgent):
    """Quantity `aspect`, longer over shorter side, at least 1. Default: at most 2."""

    name = "aspect_ratio_filter"
    description = "removes elongated pictures"
    aspect = SHAPE
    limits = ((1, None),)


class TextLengthFilter(BoundsAgent):
    """Quantities `question_words` and `answer_words`. Default: 3 to 40, at most 20."""

    name = "text_length_filter"
    description = "removes truncated or bloated questions"
    aspect = TEXT_LENGTH
    limits = ((0, None), (0, None))


class AnswerConsistencyFilter(BoundsAgent):
    """Quantity `agreement`, share of annotators behind the majority answer, 0 to 1. Default: at least 0.6."""

    name = "answer_consistency_filter"
    description = "removes questions without a clear answer"
    aspect = ANSWERS
    limits = ((0, 1),)
