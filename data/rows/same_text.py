"""When two texts are the same text: duplicates, copies on two sides of a division, annotators who agree."""

import unicodedata


def normalise_text(text: str) -> str:
    """What the writings of one text have in common: single spaces, one form of accented letters, no capital letters.

    Unicode's canonical caseless matching, after which white space is compared as one space. Punctuation stays.

    >>> normalise_text(" Un  CAFE\\u0301\\n") == normalise_text("un caf\\u00e9")
    True
    """
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    return " ".join(unicodedata.normalize("NFC", folded).split())
