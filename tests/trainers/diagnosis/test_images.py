"""Images of sampler, update and processor: what is planted in other families than Qwen's is named."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from models.families.loading import load_processor
from models.families.registry import family_of_processor
from trainers.diagnosis import causes
from trainers.diagnosis.images import check_images, compare
from trainers.diagnosis.prompts import expected_inputs
from trainers.diagnosis.rollout import Observed, Sampled

SIZES = ((64, 40), (40, 64), (32, 32))
PICTURES = [Image.effect_noise(size, 80).convert("RGB") for size in SIZES]
ROWS = ([PICTURES[0]], [PICTURES[1], PICTURES[2]], [])


def read(processor: Any, shown: Any) -> tuple[list[list[int]], list[list[dict]]]:
    """Tokens and images of rows, as the processor makes them."""
    made = [expected_inputs(processor, as_row(images)) for images in shown]
    split = family_of_processor(processor).split
    return [one["input_ids"][0].tolist() for one in made], [split(one) for one in made]


def as_row(images: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": "what?"}], "images": list(images)}


@pytest.fixture(scope="module", params=["internvl", "gemma3"])
def seen(request, tiny_family):
    """Function: what sampler and update see of the rows' images -> the causes that are named."""
    folder = str(tiny_family(request.param))
    processor, config = load_processor(folder), AutoConfig.from_pretrained(folder)

    def causes_of(sampler: Any = ROWS, update: Any = ROWS) -> set:
        ids, images = read(processor, update)
        batch = {
            "prompt_ids": torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], True),
            "prompt_mask": torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in ids], True),
            "num_images": [len(row) for row in update],
            **family_of_processor(processor).join([image for row in images for image in row]),
        }
        sampled = [Sampled([1], row, images=of_row) for row, of_row in zip(*read(processor, sampler), strict=True)]
        observed = Observed([as_row(images) for images in ROWS], sampled, batch, config=config)
        findings = list(check_images(observed, processor))
        assert len(findings) == 7
        return {finding.cause for finding in findings if finding.verdict != "ok"}

    return causes_of


def test_sound_images_are_left(seen):
    assert seen() == set()


@pytest.mark.parametrize("side", ["sampler", "update"])
@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ((ROWS[0], ROWS[1][:1], []), {causes.DROPPED_IMAGE}),
        ((ROWS[0], ROWS[1][::-1], []), {causes.IMAGE_ORDER}),
        ((ROWS[0], [], ROWS[1]), {causes.OTHER_ROW}),
        (([PICTURES[0].resize((32, 32))], *ROWS[1:]), {causes.PIXELS, causes.PIXEL_BOUNDS}),
        (([PICTURES[0].resize((20, 12)).resize((64, 40))], *ROWS[1:]), {causes.PIXELS}),
    ],
)
def test_what_is_planted_is_named(seen, shown, expected, side):
    named = seen(**{side: shown})
    assert named
    assert named <= expected


def test_a_batch_with_fewer_images_than_its_tokens_is_no_traceback(tiny_family):
    folder = str(tiny_family("internvl"))
    processor = load_processor(folder)
    ids, images = read(processor, [[PICTURES[0]]])
    batch = {"prompt_ids": torch.tensor(ids), "prompt_mask": torch.ones(1, len(ids[0])), "num_images": [1]}
    batch |= family_of_processor(processor).join(images[0][1:])
    observed = Observed([as_row([PICTURES[0]])], [Sampled([1])], batch, config=AutoConfig.from_pretrained(folder))
    (finding,) = check_images(observed, processor)
    assert finding.cause == causes.DROPPED_IMAGE


def test_of_an_unknown_family_it_is_not_told_which_images_are_whose():
    observed = Observed([{"images": ["a"]}], [], {}, config=SimpleNamespace(model_type="other"))
    (finding,) = check_images(observed, None)
    assert finding.verdict == "not told"


RED, BLUE, GREY = ({"pixel_values": torch.full((4, 3), value)} for value in (0.0, 1.0, 0.5))
GRIDS = [{"image_grid_thw": torch.tensor(grid)} for grid in ([1, 2, 2], [1, 1, 4])]


@pytest.mark.parametrize(
    ("left", "right", "causes_of_both"),
    [
        ([[RED, BLUE]], [[RED, BLUE]], []),
        ([[BLUE, RED]], [[RED, BLUE]], [causes.IMAGE_ORDER]),
        ([[BLUE, GREY]], [[RED, BLUE]], [causes.PIXELS]),
        ([[RED], [BLUE]], [[BLUE], [RED]], [causes.OTHER_ROW]),
        ([[RED], [GREY]], [[BLUE], [RED]], [causes.PIXELS]),
        ([GRIDS], [GRIDS[::-1]], [causes.IMAGE_ORDER]),
        ([GRIDS[:1], GRIDS[1:]], [GRIDS[1:], GRIDS[:1]], [causes.OTHER_ROW]),
        ([GRIDS[:1]], [GRIDS[1:]], [causes.PIXEL_BOUNDS]),
    ],
)
def test_why_images_differ(left, right, causes_of_both):
    assert [one.cause for one in compare("both", left, right) if one.verdict == "wrong"] == causes_of_both
