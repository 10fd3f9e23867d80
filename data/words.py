"""How many words a text has, in any script.

Words are what stands between spaces. Where a script puts none there, they are counted as the default segmentation of
Unicode (UAX #29) has them: each Han or Hiragana sign is a word, and each run of Katakana. That standard leaves Thai,
Lao, Khmer and Burmese to dictionaries; there, four letters count as a word. In Korean, where what stands between
spaces is a word with its particles, two syllables do. Signs that are no letters, emoji among them, add none to a run,
and are one word by themselves.

    >>> count_words("What color is the car?"), count_words("这辆车是什么颜色？"), count_words("🙂🙂")
    (5, 8, 1)
"""

import math

import regex

_SIGN = r"\p{Han}\p{Hiragana}\p{Bopomofo}\p{Yi}"
_KATAKANA = r"\p{Katakana}ー"
_LETTERS = r"\p{Line_Break=Complex_Context}"
_SYLLABLES = r"\p{Hangul}"
_SPACELESS = regex.compile(f"[{_SIGN}{_KATAKANA}{_LETTERS}{_SYLLABLES}]")
_WORDS = regex.compile(
    rf"[{_SIGN}]|[{_KATAKANA}]+|(?P<letters>[{_LETTERS}]+)|(?P<syllables>[{_SYLLABLES}]+)"
    rf"|[[\p{{L}}\p{{N}}\p{{M}}]--[{_SIGN}{_KATAKANA}{_LETTERS}{_SYLLABLES}]]+",
    regex.VERSION1,
)
_SIGNS_A_WORD = {"letters": 4, "syllables": 2}


def _words_of(token: str) -> int:
    """Words of a text without spaces."""
    if not _SPACELESS.search(token):
        return 1
    found = [(len(word[0]), _SIGNS_A_WORD.get(word.lastgroup)) for word in _WORDS.finditer(token)]
    return sum(1 if signs is None else math.ceil(length / signs) for length, signs in found)


def count_words(text: str) -> int:
    """Words of a text; see the module. 0 for an empty or blank one."""
    return sum(map(_words_of, text.split()))
