"""What followed the same tokens before is found, the latest first, in bounded memory."""

import torch

from models.decoding.drafts.store import MOST_CONTEXTS, DraftStore


def store_of(*sequences: list[int], orders: tuple[int, ...] = (2,), most: int = 100) -> DraftStore:
    store = DraftStore(orders, most)
    for sequence in sequences:
        store.note(sequence, 0)
    return store


def test_what_followed_is_found():
    store = store_of([1, 2, 3, 4, 5])
    assert store.find([9, 9, 1, 2], 2) == [3, 4]
    assert store.find([2, 3], 9) == [4, 5]
    assert store.find([4, 5], 2) == []  # nothing came after
    assert store.find([7, 8], 2) == []
    assert store.find([2], 2) == []
    assert store.find([], 2) == []
    assert store.find([1, 2], 0) == []


def test_the_latest_holds():
    store = store_of([1, 2, 3], [1, 2, 4])
    assert store.find([1, 2], 1) == [4]
    store.note([1, 2, 5], 0)
    assert store.find([1, 2], 1) == [5]


def test_longer_contexts_come_first():
    store = store_of([1, 2, 3, 7], [9, 2, 3, 8], orders=(3, 2))
    assert store.find([1, 2, 3], 1) == [7]
    assert store.find([5, 2, 3], 1) == [8]  # met by the shorter alone


def test_a_sequence_that_grows_is_noted_from_where_it_was_new():
    store, sequence = DraftStore((2,)), [1, 2]
    store.note(sequence, 0)
    sequence += [3, 4]
    store.note(sequence, 2)
    assert store.find([1, 2], 2) == [3, 4]
    sequence += [5]  # also what came later is found, as the list is kept
    assert store.find([1, 2], 3) == [3, 4, 5]
    assert len(store) == 2


def test_the_store_is_bounded_and_forgets_what_was_not_met_for_longest():
    store = store_of([1, 2, 0], [3, 4, 0], most=2)
    store.note([1, 2, 7], 0)  # met again
    store.note([5, 6, 0], 0)
    assert len(store) == 2
    assert store.find([3, 4], 1) == []
    assert store.find([1, 2], 1) == [7]
    for first in range(500):
        store.note([first, first + 1, first + 2, 3], 0)
        assert len(store) <= 2


def test_as_many_contexts_are_kept_as_are_said_to_be():
    store = DraftStore(most=50)
    for start in range(0, 3000, 30):
        store.note(list(range(start, start + 30)), 0)
    assert len(store) == 50
    assert DraftStore().most == MOST_CONTEXTS


def test_a_store_that_was_loaded_goes_on_as_the_one_it_is_of():
    """With the order in which contexts were met, by which they leave."""
    one, other = DraftStore((3, 2), 40), store_of([7, 7, 7])
    other.orders, other.most = one.orders, one.most
    numbers = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, 60, 10):
        one.note(numbers[start : start + 10], 1)
    other.load(one.tensors())
    for start in range(0, 60, 6):
        assert list(other._found) == list(one._found)
        assert [other.find(numbers[start:place], 4) for place in range(60)] == [
            one.find(numbers[start:place], 4) for place in range(60)
        ]
        for store in (one, other):
            store.note(numbers[start : start + 6][::-1], 2)
    other.load(DraftStore().tensors())
    assert len(other) == 0
