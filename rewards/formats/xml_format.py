"""Whether a completion is written in the format of a selection: leniently, or to the letter."""

import re
from collections.abc import Sequence
from typing import Any
from xml.parsers import expat

from data.prompts import read_text
from filter_agents.registry import AGENTS, build_agents
from rewards.base import Reward

_TAGS_IN_ORDER = ("<selection>", "<reasoning>", "</reasoning>", "<agents>", "</agents>", "</selection>")


class XmlFormat(Reward):
    """1 if <selection>, a <reasoning> element, an <agents> element and </selection> occur in this order, else 0.

    Anything may stand before, between and after: this is the original system's rule.
    """

    name = "xml_format"

    def score(self, text: str) -> float:
        position = 0
        for tag in _TAGS_IN_ORDER:
            position = text.find(tag, position)
            if position < 0:
                return 0.0
            position += len(tag)
        return 1.0


_SPACE = r"[ \t\n]*"
_PLAIN = r"[^<>&\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]*"  # what XML allows, without markup or escapes
_PLAIN_AGENT = rf"<agent>{_SPACE}<name>({_PLAIN})</name>{_SPACE}<prompt>({_PLAIN})</prompt>{_SPACE}</agent>{_SPACE}"
_PLAIN_AGENTS = re.compile(_PLAIN_AGENT)
_PLAIN_SELECTION = re.compile(
    rf"<selection>{_SPACE}<reasoning>{_PLAIN}</reasoning>{_SPACE}"
    rf"<agents>{_SPACE}(?:{_PLAIN_AGENT.replace('(', '(?:')})*</agents>{_SPACE}</selection>"
)
"""The usual strict selection, without escapes. What it does not match is left to the XML parser, which is slower."""
_TEXTS = re.compile(r"<(?:name|prompt)\s*(?:/>|>([^<]*)<)")
"""Names and prompts, in turn, of a selection that is known to be strict: no `<` stands inside a text there."""


class _NotStrict(Exception):
    """Stops the parser at the first thing that a strict selection does not have."""


_CHILDREN = {
    None: ("selection",),
    "selection": ("reasoning", "agents"),
    "agents": ("agent",),
    "agent": ("name", "prompt"),
}
_REPEATED = {"agents"}
_WITH_TEXT = {"reasoning", "name", "prompt"}


class _StrictReader:
    """Follows expat's events and raises `_NotStrict` at the first deviation."""

    def __init__(self):
        self.path: list[str | None] = [None]
        self.counts: list[int] = [0]  # children seen, of every open element

    def start(self, tag: str, attributes: dict) -> None:
        parent, count = self.path[-1], self.counts[-1]
        expected = _CHILDREN.get(parent, ())
        index = 0 if parent in _REPEATED else count
        if attributes or index >= len(expected) or expected[index] != tag:
            raise _NotStrict
        self.counts[-1] += 1
        self.path.append(tag)
        self.counts.append(0)

    def end(self, tag: str) -> None:
        self.path.pop()
        count = self.counts.pop()
        if tag not in _REPEATED and count != len(_CHILDREN.get(tag, ())):
            raise _NotStrict

    def characters(self, text: str) -> None:
        if self.path[-1] not in _WITH_TEXT and text.strip():
            raise _NotStrict

    def refuse(self, *_: Any) -> None:
        """Handles what has no place in a selection: a document type (with entities), a comment, an instruction."""
        raise _NotStrict


def read_strict_selection(text: str) -> list[tuple[str, str]] | None:
    """(name, prompt) of every agent if the whole text is one well-formed selection, else `None`.

    The texts are those that `rewards.agent_selection.Selection.unescaped` gives.
    """
    text = text.strip()
    if _PLAIN_SELECTION.fullmatch(text):
        return [(name.strip(), prompt.strip()) for name, prompt in _PLAIN_AGENTS.findall(text)]
    if not _is_strict(text):
        return None
    texts = [read_text(written) for written in _TEXTS.findall(text)]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _is_strict(text: str) -> bool:
    """Whether expat finds nothing else than a selection. It stops at the first deviation, and no entity can grow."""
    reader = _StrictReader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.CommentHandler = reader.refuse
    parser.ProcessingInstructionHandler = reader.refuse
    parser.XmlDeclHandler = reader.refuse
    parser.StartCdataSectionHandler = reader.refuse
    try:
        parser.Parse(text, True)
    except (_NotStrict, expat.ExpatError, UnicodeEncodeError):
        return False
    return True


class StrictXmlFormat(Reward):
    """1 only if the whole completion is one well-formed selection with every agent once, known, and with a prompt.

    Well-formed as XML: `&` and `<` inside texts are escaped; white space around elements is allowed, nothing else is.

    Args:
        agents: entries as in a recipe's `agents`, whose names are the known ones; by default the recipe's own, or all
            built-in ones.
    """

    name = "strict_xml_format"

    def __init__(self, agents: Sequence[str | dict] | None = None):
        self._known = frozenset(AGENTS if agents is None else build_agents(agents))

    def score(self, text: str) -> float:
        found = read_strict_selection(text)
        if found is None:
            return 0.0
        names = [name for name, _ in found]
        valid = self._known.issuperset(names) and len(set(names)) == len(names) and all(prompt for _, prompt in found)
        return float(valid)
