"""Mistakes of a command line, whoever reads it: misspelt names, options given twice, words that are no text."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from data.errors import UserError
from data.io.json_text import half_character

MOST_NAMED = 3


def closest(name: str, known: Iterable[str], other_words: Mapping[str, str] | None = None) -> str:
    """A hint for a name that does not exist: the closest three, or nothing if none is close.

    Args:
        other_words: what people call things -> their name here; the hint begins with it.

    >>> closest("poolsize", ["pool_size", "seed"])
    "did you mean 'pool_size'? "
    """
    listed = list(known)
    meant = [key for key in ((other_words or {}).get(name.lower().replace("-", "_")),) if key in listed]
    similar = difflib.get_close_matches(name, listed, n=MOST_NAMED, cutoff=0.5)
    close = [*meant, *(key for key in similar if key not in meant)][:MOST_NAMED]
    return f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""


class WordError(UserError, ValueError):
    """A command line that cannot be meant; the message names the option or the word."""


def check_words(words: Iterable[str]) -> None:
    """Raises a `WordError` for a word that is not UTF-8, which Python reads as halves of surrogate pairs: what is made
    with it could not be written down."""
    for word in words:
        place = half_character(word)
        if place is not None:
            raise WordError(f"{word!a:.200}: not UTF-8 text at character {place}, so that no file could name it")


def check_given_once(typed: Sequence[tuple[str, str]]) -> None:
    """Raises a `WordError` for an option that is given twice, of which one would be passed over.

    Args:
        typed: of each option that is given, its name and how it was written.
    """
    first: dict[str, str] = {}
    for name, written in typed:
        if name in first:
            both = f"as --{first[name]} and as --{written}" if written != first[name] else "twice"
            raise WordError(f"--{name}: given {both}; give it once, a list's values after each other")
        first[name] = written
