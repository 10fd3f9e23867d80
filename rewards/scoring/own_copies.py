"""Copies of what a reward is given: what it changes in place stays its own."""

from collections import deque
from copy import copy
from typing import Any

_COPIED_BY = {"PIL": "copy", "numpy": "copy", "torch": "clone"}
"""How pictures and arrays are copied, by the library that they are of, which need not be installed."""


def own_copy(value: Any, made: dict[int, Any]) -> Any:
    """A copy of containers, bytearrays, pictures and arrays, all the way down; all else is shared.

    Args:
        made: copies of pictures and arrays so far, by the `id` of the original: rows of a group show the same picture.
    """
    if isinstance(value, dict):
        own = copy(value)
        for key, item in value.items():
            own[key] = own_copy(item, made)
        return own
    if isinstance(value, list | deque):  # of any class that is made from them
        own, items = copy(value), [own_copy(item, made) for item in value]
        own.clear()
        own.extend(items)
        return own
    if isinstance(value, set | bytearray):  # what they hold cannot be changed
        return copy(value)
    if type(value) is tuple:
        return tuple(own_copy(item, made) for item in value)
    method = _COPIED_BY.get(type(value).__module__.partition(".")[0])
    if method is None or not hasattr(value, method):
        return value
    if id(value) not in made:
        made[id(value)] = getattr(value, method)()
    return made[id(value)]
