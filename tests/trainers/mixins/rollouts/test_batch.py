"""Batches of rollouts: shuffled by groups, merged row by row, stored and read again."""

import pytest
import torch

from trainers.mixins.rollouts.batch import (
    in_order,
    load_batches,
    order_of_groups,
    replace_rows,
    rows_in,
    save_batches,
    with_rows_as_images,
)

PAD = 7


def make_batch(first: int, prompts: list[int], completions: list[int], images: list[int]) -> dict:
    """A batch like TRL's; row r holds tokens `first + r`, as many as said, and images of 2x2 patches of `first + r`.

    Args:
        prompts, completions: number of tokens of each row.
        images: number of images of each row.
    """
    rows = range(len(prompts))
    wide, long = max(prompts), max(completions)
    batch = {
        "prompt_ids": torch.tensor([[PAD] * (wide - prompts[r]) + [first + r] * prompts[r] for r in rows]),
        "prompt_mask": torch.tensor([[0] * (wide - prompts[r]) + [1] * prompts[r] for r in rows]),
        "completion_ids": torch.tensor([[first + r] * completions[r] + [PAD] * (long - completions[r]) for r in rows]),
        "completion_mask": torch.tensor([[1] * completions[r] + [0] * (long - completions[r]) for r in rows]),
        "advantages": torch.tensor([float(first + r) for r in rows]),
        "old_per_token_logps": torch.tensor([[-float(first + r)] * long for r in rows]),
        "num_items_in_batch": torch.tensor(3),
    }
    if any(images):
        grid = torch.tensor([[1, 2, 2]] * sum(images))
        values = [[float(first + r)] * 5 for r in rows for _ in range(4 * images[r])]
        mm = torch.cat([batch["prompt_mask"], torch.zeros(len(prompts), long, dtype=torch.long)], dim=1)
        batch |= {
            "pixel_values": torch.tensor(values),
            "image_grid_thw": grid,
            "num_images": images,
            "mm_token_type_ids": mm,
        }
    return batch


def test_replaced_rows_bring_tokens_masks_pixels_and_padding():
    old = make_batch(10, [3, 1, 2], [2, 4, 1], [1, 0, 2])
    new = make_batch(50, [5, 2], [1, 6], [2, 1])
    merged = replace_rows(old, [0, 2], new, [1, 0], PAD)
    assert merged["prompt_ids"].tolist() == [[7, 7, 7, 51, 51], [7, 7, 7, 7, 11], [50] * 5]
    assert merged["prompt_mask"].sum(dim=1).tolist() == [2, 1, 5]
    assert merged["completion_ids"].tolist() == [[51] * 6, [11] * 4 + [7] * 2, [50] + [7] * 5]
    assert merged["completion_mask"].sum(dim=1).tolist() == [6, 4, 1]
    assert merged["advantages"].tolist() == [51.0, 11.0, 50.0]
    assert merged["old_per_token_logps"][0].tolist() == [-51.0] * 6
    assert merged["old_per_token_logps"][1].tolist() == [-11.0] * 4 + [0.0] * 2
    assert list(merged["num_images"]) == [1, 0, 2]
    assert merged["pixel_values"][:, 0].tolist() == [51.0] * 4 + [50.0] * 8
    assert merged["image_grid_thw"].tolist() == [[1, 2, 2]] * 3
    assert merged["mm_token_type_ids"][0].tolist() == [0, 0, 0, 1, 1] + [0] * 6
    assert merged["num_items_in_batch"].item() == 3


def test_a_batch_without_images_takes_rows_with_some_and_the_other_way_round():
    plain, pictured = make_batch(10, [2, 2], [1, 1], [0, 0]), make_batch(50, [2, 2], [1, 1], [1, 1])
    merged = replace_rows(plain, [1], pictured, [0], PAD)
    assert list(merged["num_images"]) == [0, 1]
    assert merged["pixel_values"][:, 0].tolist() == [50.0] * 4
    merged = replace_rows(pictured, [0], plain, [1], PAD)
    assert list(merged["num_images"]) == [0, 1]
    assert merged["pixel_values"][:, 0].tolist() == [51.0] * 4
    assert merged["prompt_ids"][0].tolist() == [11, 11]


def with_tiles(batch: dict, first: int, tiles: list[int], by_row: bool = False) -> dict:
    """The batch with as many tiles a row as said, in the place of patches, which show `first + row`.

    Args:
        by_row: as Idefics lays them out: a row of tiles for each completion, filled up with zeros.
    """
    batch = {key: value for key, value in batch.items() if key not in ("pixel_values", "image_grid_thw")}
    del batch["mm_token_type_ids"]
    if by_row:
        pixels, mask = torch.zeros(len(tiles), max(tiles), 1, 2, 2), torch.zeros(len(tiles), max(tiles), 2, 2)
        for row, count in enumerate(tiles):
            pixels[row, :count], mask[row, :count] = first + row, 1
        return with_rows_as_images(batch | {"pixel_values": pixels, "pixel_attention_mask": mask})
    shown = torch.tensor([float(first + row) for row, count in enumerate(tiles) for _ in range(count)])
    counted = {"num_tiles": tiles} if sum(tiles) != sum(batch["num_images"]) else {}  # as TRL does
    return batch | {"pixel_values": shown.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)} | counted


@pytest.mark.parametrize(("old", "new"), [([1, 3, 0], [2, 1, 1]), ([1, 1, 0], [3, 1, 1]), ([3, 1, 0], [1, 1, 1])])
def test_tiles_go_with_their_rows(old, new):
    batches = [make_batch(first, [2] * 3, [1] * 3, [1, 1, images]) for first, images in ((10, 0), (50, 1))]
    left, right = (with_tiles(*given) for given in zip(batches, (10, 50), (old, new), strict=True))
    merged = replace_rows(left, [0, 2], right, [2, 0], PAD)
    assert list(merged["num_images"]) == [1, 1, 1]
    assert list(merged.get("num_tiles", merged["num_images"])) == [new[2], old[1], new[0]]
    assert merged["pixel_values"][:, 0, 0, 0].tolist() == [52.0] * new[2] + [11.0] * old[1] + [50.0] * new[0]


@pytest.mark.parametrize(("old", "new"), [([1, 3, 0], [2, 1, 1]), ([0, 0, 0], [0, 3, 1])])
def test_rows_of_tiles_go_with_their_rows(old, new):
    """Also of a batch without images, and where there are as many images as rows."""
    left, right = make_batch(10, [2] * 3, [1] * 3, [1, 2, 0]), make_batch(50, [2] * 3, [1] * 3, [0, 2, 1])
    right = with_tiles(right, 50, new, by_row=True)
    images = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    bare = {key: value for key, value in left.items() if key not in images}
    left = with_tiles(left, 10, old, by_row=True) if any(old) else bare
    merged = replace_rows(left, [0, 2], right, [2, 1], PAD)
    shown = [(52.0, new[2]), (11.0, old[1]), (51.0, new[1])]
    most = max(*old, *new)
    assert merged["pixel_values"].shape == (3, most, 1, 2, 2)
    expected = [[value] * count + [0.0] * (most - count) for value, count in shown]
    assert merged["pixel_values"][:, :, 0, 0, 0].tolist() == expected
    assert merged["pixel_attention_mask"][:, :, 0, 0].sum(dim=1).tolist() == [count for _, count in shown]
    merged["place"] = torch.tensor([2, 0, 1])
    ordered = in_order([merged], "place")[0]
    assert ordered["pixel_values"][:, :, 0, 0, 0].tolist() == [expected[1], expected[2], expected[0]]
    assert ordered["completion_ids"].flatten().tolist() == [11, 51, 52]


def test_replacing_nothing_changes_nothing():
    old = make_batch(10, [3, 1], [2, 4], [1, 1])
    merged = replace_rows(old, [], make_batch(50, [2, 2], [1, 1], [1, 1]), [], PAD)
    for key, value in old.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(merged[key], value), key


@pytest.mark.parametrize(("rows", "first", "groups"), [(12, 0, 3), (6, 6, 2)])
def test_groups_are_shuffled_whole_and_lose_no_row(rows, first, groups):
    torch.manual_seed(1)
    order = order_of_groups(rows, first, 4).argsort().tolist()
    assert order != list(range(rows))
    assert sorted(order) == list(range(rows))
    numbers = [(first + row) // 4 for row in order]
    assert sum(number != before for number, before in zip(numbers[1:], numbers, strict=False)) == groups - 1
    assert all(row > before for row, before in zip(order[1:], order, strict=False) if row // 4 == before // 4)


def test_rows_of_parts_are_put_in_order_with_their_images():
    parts = [make_batch(0, [1] * 3, [1] * 3, [1, 0, 2]), make_batch(3, [1] * 3, [1] * 3, [0, 1, 0])]
    parts[0]["place"], parts[1]["place"] = torch.tensor([5, 0, 2]), torch.tensor([1, 4, 3])
    ordered = in_order(parts, "place")
    assert [part["completion_ids"].flatten().tolist() for part in ordered] == [[1, 3, 2], [5, 4, 0]]
    assert [list(part["num_images"]) for part in ordered] == [[0, 0, 2], [0, 1, 1]]
    assert [part["image_grid_thw"].shape[0] for part in ordered] == [2, 2]
    assert all("place" not in part for part in ordered)


def test_stored_batches_come_back_equal(tmp_path):
    batches = [make_batch(1, [2, 3], [1, 2], [1, 0]), make_batch(5, [1, 1], [1, 1], [0, 0])]
    batches[1]["num_images"] = None
    save_batches(batches, tmp_path / "rollouts.safetensors")
    loaded = load_batches(tmp_path / "rollouts.safetensors", torch.device("cpu"))
    assert len(loaded) == 2
    for old, new in zip(batches, loaded, strict=True):
        assert old.keys() == new.keys()
        for key, value in old.items():
            same = torch.equal(value, new[key]) if isinstance(value, torch.Tensor) else value == new[key]
            assert same, key
    assert rows_in(loaded[0]) == 2
