"""How counts are said."""


def counted(number: int, noun: str) -> str:
    """A number of things, of which there may be one.

    >>> counted(1, "problem"), counted(2000, "problem")
    ('1 problem', '2,000 problems')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
