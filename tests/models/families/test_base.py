"""Images of a batch, whatever the layout of its tensors: taken apart, compared, found in rows, put together again."""

from types import SimpleNamespace

import pytest
import torch

from models.families.base import Family, KnownFamily, PromptPieces, different_images, find_images
from models.families.idefics import Idefics
from models.families.internvl import InternVL
from models.families.llava_onevision import LlavaOnevision
from models.families.qwen_vl import QwenVL


def patches() -> tuple[QwenVL, dict[str, torch.Tensor]]:
    """Of images of 4, 2 and 4 patches, the last like the first."""
    first = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    pixels = torch.cat([first, first[:2] + 1, first])
    return QwenVL(), {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2, 2], [1, 1, 2], [1, 2, 2]])}


def tiles() -> tuple[InternVL, dict[str, torch.Tensor]]:
    pixels = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels[2] = pixels[0]
    return InternVL(), {"pixel_values": pixels}


def rows_of_tiles() -> tuple[Idefics, dict[str, torch.Tensor]]:
    """Two tiles, none, and the first again."""
    pixels = torch.zeros(3, 2, 3, 4, 4)
    pixels[0] = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels[2, 0] = pixels[0, 0]
    mask = torch.ones(3, 2, 4, 4, dtype=torch.long)
    mask[:, 0, :, 2:] = 0
    return Idefics(), {"pixel_values": pixels, "pixel_attention_mask": mask}


def pictures_and_tiles() -> tuple[LlavaOnevision, dict[str, torch.Tensor]]:
    """One with two tiles, one of several, and the first again."""
    pixels = torch.randn(3, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels[1, 1:] = 0
    pixels[2] = pixels[0]
    return LlavaOnevision(), {"pixel_values": pixels, "image_sizes": torch.tensor([[4, 8], [4, 4], [4, 8]])}


LAYOUTS = {
    "patches": patches,
    "tiles": tiles,
    "rows of tiles": rows_of_tiles,
    "pictures and tiles": pictures_and_tiles,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_taken_apart_and_put_together(layout):
    family, inputs = LAYOUTS[layout]()
    images = family.split({"input_ids": torch.zeros(1, 1), **inputs})
    assert len(images) == 3
    joined = family.join(images)
    assert joined.keys() == inputs.keys()
    again = family.split(joined)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(images, again, strict=True) for name in one)
    if layout != "rows of tiles":
        assert all(torch.equal(joined[name], inputs[name]) for name in inputs)
    numbers, different = different_images(images)
    assert numbers == [0, 1, 0]
    assert [one is other for one, other in zip(different, images, strict=False)] == [True, True]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_images_there_is_nothing_to_take_apart(layout):
    family, inputs = LAYOUTS[layout]()
    empty = {name: value[:0] for name, value in inputs.items()}
    for nothing in ({}, dict.fromkeys(inputs), empty):
        assert family.split(nothing) == []
    assert family.join([]) == {}
    assert family.show_nothing(empty["pixel_values"])
    assert not family.show_nothing(inputs["pixel_values"])


def test_rows_of_zeros_show_nothing():
    family, inputs = rows_of_tiles()
    assert family.show_nothing(inputs["pixel_values"][1:2])


def test_pixels_decide_whether_images_are_the_same():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 6, generator=generator)
    other = pixels.clone()
    other[0, 0] += 1e-6
    grids = torch.tensor([[1, 2, 4], [1, 4, 2], [1, 2, 4], [1, 2, 4]])
    images = QwenVL().split({"pixel_values": torch.cat([pixels, pixels, other, pixels]), "image_grid_thw": grids})
    numbers, different = different_images(images)
    assert numbers == [0, 1, 2, 0]
    assert [image["image_grid_thw"].tolist() for image in different] == grids[:3].tolist()


@pytest.mark.parametrize("whole", [True, False])
def test_features_of_images_are_chosen_in_either_form(whole):
    pooled = torch.arange(6.0).view(3, 2, 1)
    features = SimpleNamespace(pooler_output=pooled if whole else pooled.unbind())
    Family().choose_images(features, [2, 0, 0])
    assert isinstance(features.pooler_output, torch.Tensor) == whole
    assert [one.tolist() for one in features.pooler_output] == [[[4.0], [5.0]], [[0.0], [1.0]], [[0.0], [1.0]]]


def test_images_are_found_in_rows_by_their_tokens():
    assert find_images([4, 2, 2, 4], [6, 0, 2, 4]) == [[0, 1], [], [2], [3]]
    for tokens in ([5, 1, 6], [6, 2], [6, 2, 4, 2]):
        with pytest.raises(ValueError, match="image tokens: expected"):
            find_images([4, 2, 2, 4], tokens)


def test_pictures_count_where_each_is_one_image_and_tokens_where_it_is_several_tiles():
    config = SimpleNamespace(image_seq_length=4)
    family, inputs = tiles()
    images = family.split(inputs)
    assert family.images_of_rows(config, images, [8, 0, 4], counts=[1, 0, 1]) == [[0, 1], [], [2]]
    family, inputs = patches()
    assert family.images_of_rows(None, family.split(inputs), [], counts=[2, 0, 1]) == [[0, 1], [], [2]]


@pytest.mark.parametrize(("interface", "asked"), [(KnownFamily, "visual_tokens"), (PromptPieces, "token_grid")])
def test_a_family_must_say_what_every_caller_asks(interface, asked):
    """So that nothing is found to be missing while a model trains."""
    assert not hasattr(Family, asked)
    with pytest.raises(TypeError, match=asked):
        type("Silent", (interface,), {})()
