"""Command lines that differ in a few options."""

from collections.abc import Sequence


def with_options(words: Sequence, more: Sequence) -> list[str]:
    """The command line with other values of some options, and with further ones: none is given twice.

    >>> with_options(["--a", 1, "--b", 2, 3], ["--b", 4, "--c"])
    ['--a', '1', '--b', '4', '--c']
    """
    given: dict[str, list[str]] = {}
    for part in (words, more):
        name = ""
        for word in map(str, part):
            if word.startswith("--"):
                name = word
                given[name] = []
            given.setdefault(name, []).append(word)
    return [word for option in given.values() for word in option]
