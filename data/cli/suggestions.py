"""What a misspelt name was probably meant to be."""

import difflib
from collections.abc import Iterable, Mapping

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
