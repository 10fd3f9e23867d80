"""What all errors have in common that a user can mend: programs print their message and end with status 1."""

from typing import Self


def described(location: str, field: str, text: str) -> str:
    """A problem as people read it.

    >>> described("my.jsonl:2", "question", "expected a text, found 3")
    "my.jsonl:2: field 'question': expected a text, found 3"
    """
    return ": ".join(filter(None, [location, field and f"field '{field}'", text]))


class UserError(Exception):
    """Wrong data, settings or surroundings.

    Args:
        text: what was found and what was expected; and where, as far as that is not given beside.
        location: file and row, option, or key of a recipe.
        field: of the row.

    The message is made of the three when it is shown, and never taken apart again. Who catches an error and knows more
    of where it is raises `error.at(place)`.
    """

    def __init__(self, text: str, location: str = "", field: str = ""):
        self.text, self.location, self.field = text, location, field
        super().__init__(text)

    def __str__(self) -> str:
        return described(self.location, self.field, self.text)

    def at(self, place: str) -> Self:
        """The same error, with a place before its own."""
        return type(self)(self.text, described(place, "", self.location), self.field)

    def __reduce__(self):
        return type(self), (self.text, self.location, self.field)  # an error of one process is raised by all
