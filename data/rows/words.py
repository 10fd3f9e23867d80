"""The words of a text, in any script, and how many it has.

Words are what stands between spaces, or between the marks that some scripts have in their place, such as the tsheg of
Tibetan. Where a script puts none there, they are counted as the default segmentation of Unicode (UAX #29) has them:
each Han or Hiragana sign is a word, and each run of Katakana. That standard leaves Thai, Lao, Khmer and Burmese to
dictionaries; there, four letters count as a word. In Korean, where what stands between spaces is a word with its
particles, two syllables do, and so do two letters with their signs in Javanese, Balinese and the other scripts that
end lines after any syllable (UAX #14). Signs that are no letters, emoji among them, add none to a run, and are one
word by themselves.

    >>> count_words("What color is the car?"), count_words("这辆车是什么颜色？"), count_words("🙂🙂")
    (5, 8, 1)
    >>> count_words("བོད་ཡིག་གི་ཡི་གེ།"), count_words("ꦧꦱꦗꦮ")
    (5, 2)
"""

import math

import regex

_SIGN = r"\p{Ideographic}\p{Hiragana}\p{Bopomofo}\p{Yi}\p{Nushu}"
_KATAKANA = r"\p{Katakana}ー"
_LETTERS = r"\p{Line_Break=Complex_Context}"
_HANGUL = r"\p{Hangul}"
_AKSARAS = r"\p{Javanese}\p{Balinese}\p{Batak}\p{Cham}\p{Makasar}\p{Kawi}\p{Brahmi}\p{Grantha}\p{Dives_Akuru}"
_SPACELESS = _SIGN + _KATAKANA + _LETTERS + _HANGUL
_DIVIDERS = "\u0f0b\u0f0c\u1361\U00010100\U00010101\U0001039f\U000103d0\U0001091f"
"""Between words or syllables, of Tibetan, Ethiopic, Aegean scripts, Ugaritic, Old Persian and Phoenician."""
_NOT_BY_SPACES = regex.compile(f"[{_SPACELESS}{_AKSARAS}{_DIVIDERS}]")
_OTHERS = rf"[[\p{{L}}\p{{N}}\p{{M}}]--[{_SPACELESS}{_AKSARAS}]]+"
_COUNTED = regex.compile(
    rf"[{_SIGN}]|[{_KATAKANA}]+|(?P<letters>[{_LETTERS}]+)|(?P<syllables>[{_HANGUL}]+)"
    rf"|(?:(?P<aksaras>[[{_AKSARAS}]&&\p{{L}}])|[[{_AKSARAS}]&&[\p{{M}}\p{{N}}]])+|{_OTHERS}",
    regex.VERSION1,
)
_SIGNS_A_WORD = {"letters": 4, "syllables": 2, "aksaras": 2}
_FOUND = regex.compile(
    rf"[{_SIGN}]|[{_KATAKANA}]+|(?=[{_LETTERS}{_AKSARAS}])(?=[\p{{L}}\p{{N}}\p{{M}}])\X"
    rf"|[[\p{{L}}\p{{N}}\p{{M}}]--[{_SIGN}{_KATAKANA}{_LETTERS}{_AKSARAS}]]+",
    regex.VERSION1,
)


def find_words(text: str) -> list[str]:
    """Words of a text to compare with those of another: runs of letters, digits and their marks.

    Where spaces do not divide words, each sign is one, with what stands above and below it.

    >>> find_words("a red-hot мяч, 红球")
    ['a', 'red', 'hot', 'мяч', '红', '球']
    """
    return _FOUND.findall(text)


def _words_of(token: str) -> int:
    """Words of a text without spaces."""
    if not _NOT_BY_SPACES.search(token):
        return 1
    return sum(map(_words_of_run, _COUNTED.finditer(token)))


def _words_of_run(run: regex.Match) -> int:
    """Words of letters of one kind; a run of marks alone is one."""
    kind = run.lastgroup
    if kind is None:
        return 1
    signs = len(run.captures(kind)) if kind == "aksaras" else len(run[0])
    return math.ceil(signs / _SIGNS_A_WORD[kind])


def count_words(text: str) -> int:
    """Words of a text; see the module. 0 for an empty or blank one."""
    return sum(map(_words_of, text.split()))


def first_words(text: str, number: int) -> str:
    """The beginning of a text, with single spaces: as many words as asked for, or all of them.

    >>> first_words("What color is it?", 2), first_words("什么颜色？", 2), first_words("iPhone 什么颜色？", 2)
    ('What color', '什么', 'iPhone 什')
    """
    kept: list[str] = []
    for token in text.split():
        if number <= 0:
            break
        if _words_of(token) > number:
            token = _beginning(token, number)
        kept.append(token)
        number -= _words_of(token)
    return " ".join(kept)


def _beginning(token: str, number: int) -> str:
    """The longest beginning of a text without spaces that has no more words than a number; signs stay whole."""
    end = 0
    for sign in regex.finditer(r"\X", token):
        if _words_of(token[: sign.end()]) > number:
            break
        end = sign.end()
    return token[:end]
