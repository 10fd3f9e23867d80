"""Types of fields that records about examples share: lists of ids, finite numbers, shares.

Pydantic's own checks of these would let texts pass for numbers, or report one wrong id twice, as not an integer and as
not a text.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from data.reports.pool import ItemId


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_ids(value: Any) -> list[ItemId]:
    """The value, if it is a list of different integers and texts."""
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("ids", "expected a list of ids")
    if not value:
        raise PydanticCustomError("ids", "expected at least one id")
    for position, item in enumerate(value):
        if type(item) is not int and type(item) is not str:  # a bool is an int to isinstance
            context = {"position": position, "item": _shown(item)}
            raise PydanticCustomError("ids", "item {position}: expected an integer or a text, found {item}", context)
    if len(set(value)) != len(value):
        twice = next(item for position, item in enumerate(value) if item in value[:position])
        raise PydanticCustomError("ids", "duplicate id {item}", {"item": _shown(twice)})
    return list(value)


def _check_share(value: Any) -> Any:
    if type(value) in (int, float) and not 0 <= value <= 1:
        raise PydanticCustomError("share", "expected 0 to 1 (percentages are not converted)")
    return value


def _check_hit(value: Any) -> Any:
    if type(value) not in (int, bool) or value not in (0, 1):
        raise PydanticCustomError("hit", "expected 0 or 1")
    return int(value)


def _check_id(value: Any) -> ItemId:
    if type(value) is not int and type(value) is not str:
        raise PydanticCustomError("id", "expected an integer or a text")
    return value


OneId = Annotated[ItemId, BeforeValidator(_check_id)]
"""An integer or a text; 1 and "1" are different ids."""
IdList = Annotated[list[Any], BeforeValidator(_check_ids)]
"""At least one id, none of them twice; order is kept."""
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e18, le=1e18)]
"""An integer or a float that float32 can hold the square of: not NaN or infinite, and no text."""
Share = Annotated[Finite, BeforeValidator(_check_share)]
"""0 to 1. What is above is refused and never read as a percentage: 0.9 could be meant either way."""
Hit = Annotated[int, BeforeValidator(_check_hit)]
"""0 or 1 (or false or true)."""
Count = Annotated[int, Field(strict=True, ge=0)]
"""0, 1, 2, ..."""
