"""Packing rows that begin alike, by hand and by what must hold for any rows."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.shared_prefix.attention import additive_mask
from models.shared_prefix.layout import common_prefix, in_blocks, lay_out, rows_with_equal_keys

# ppaa.  ppb..  .cdd.  with rows 0 and 1 alike up to 2 tokens
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]], dtype=bool)


def test_one_line_by_hand():
    layout = lay_out(MASK, [[0, 1], [2]], [2, 1])
    assert layout.shape == (1, 8)
    assert layout.tokens == 8
    assert layout.places.tolist() == [[0, 1, 2, 3, -1], [0, 1, 4, -1, -1], [-1, 5, 6, 7, -1]]
    # A place that two rows share holds the token of the last of them; they are the same.
    assert layout.sources.tolist() == [5, 6, 2, 3, 7, 11, 12, 13]
    assert [(one.start, one.prefix, one.continuations, one.rows) for one in layout.segments] == [
        (0, 2, (2, 1), (0, 1)),
        (5, 1, (2,), (2,)),
    ]


def test_a_line_for_each_by_hand():
    layout = lay_out(MASK, [[0, 1], [2]], [2, 1], one_line=False)
    assert layout.shape == (2, 5)
    assert layout.places.tolist() == [[0, 1, 2, 3, -1], [0, 1, 4, -1, -1], [-1, 5, 6, 7, -1]]
    assert layout.sources.tolist() == [5, 6, 2, 3, 7, 11, 12, 13, -1, -1]
    seen = additive_mask(layout, torch.float32, torch.device("cpu"))[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],  # p
        [1, 1, 0, 0, 0],  # p
        [1, 1, 1, 0, 0],  # a
        [1, 1, 1, 1, 0],  # a
        [1, 1, 0, 0, 1],  # b sees no a
    ]


def test_rows_with_equal_keys_and_common_prefix():
    assert rows_with_equal_keys(["x", "y", "x", "z", "y"]) == [[0, 2], [1, 4], [3]]
    rows = [np.array([1, 2, 3, 4]), np.array([1, 2, 3]), np.array([1, 2, 9])]
    assert common_prefix(rows) == 2
    assert common_prefix(rows[:2]) == 3
    assert common_prefix([*rows, np.array([], dtype=int)]) == 0


@given(prefix=st.integers(1, 50), rest=st.integers(0, 50), size=st.integers(1, 20))
def test_a_block_has_no_larger_table_than_its_rows(prefix, rest, size):
    blocks = in_blocks([range(size)], [prefix], [rest])
    assert [row for block in blocks for row in block] == list(range(size))
    for block in blocks:
        assert (prefix + len(block) * rest) ** 2 <= len(block) * (prefix + rest) ** 2 or len(block) == 1
