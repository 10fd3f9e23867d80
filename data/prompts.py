"""What a model is asked, what the right answer looks like, and how the texts of an answer are escaped."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

SELECTION_FORMAT = (
    "<selection><reasoning>why</reasoning><agents><agent><name>agent name</name><prompt>what to keep</prompt></agent>"
    "</agents></selection>"
)

Messages = list[dict[str, str]]


def selection_system_prompt(agents: Iterable[tuple[str, str]]) -> str:
    """The system text of agent selection.

    Args:
        agents: (name, one-line description) of every agent that may be selected.
    """
    lines = "\n".join(f"- {name}: {description}" for name, description in agents)
    return (
        "You select filtering agents for a data set. Read the report and choose the agents that mend what stands out, "
        f"with a prompt for each.\nAgents:\n{lines}\nAnswer in this format, one agent element for each agent:\n"
        f"{SELECTION_FORMAT}"
    )


def selection_messages(report: str, agents: Iterable[tuple[str, str]]) -> Messages:
    """The conversation that a model completes: system text, then the report. Images come before the report."""
    return [
        {"role": "system", "content": selection_system_prompt(agents)},
        {"role": "user", "content": report},
    ]


_MARKUP = re.compile(r"^\s+|\s+\Z|[&<>\r]")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REFERENCE = re.compile(r"&(?:(amp|lt|gt|quot|apos)|#([0-9]{1,7})|#x([0-9a-fA-F]{1,6}));")
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_NAMES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def unwritable_character(text: str) -> str | None:
    """The first character of a text that XML has no way to write: a control character, or half a surrogate pair."""
    found = _NOT_XML.search(text)
    return found[0] if found else None


def escape_text(text: str) -> str:
    """A text as it is written inside an element; `read_text` gives it back unchanged.

    Besides markup, white space at the ends is escaped, because readers strip what stands around a text.

    Raises:
        ValueError: a character that XML cannot hold.

    >>> escape_text(" salt & pepper")
    '&#32;salt &amp; pepper'
    """
    if (character := unwritable_character(text)) is not None:
        raise ValueError(f"the character {character!r} cannot be written in a selection, found {text!r:.80}")
    return _MARKUP.sub(lambda found: "".join(_NAMES.get(sign, f"&#{ord(sign)};") for sign in found[0]), text)


def _referenced(found: re.Match) -> str:
    name, decimal, hexadecimal = found.groups()
    if name:
        return _NAMED[name]
    code = int(decimal) if decimal else int(hexadecimal, 16)
    is_character = code <= 0x10FFFF and not _NOT_XML.match(chr(code))
    return chr(code) if is_character else found[0]


def read_text(written: str) -> str:
    """What an element's content says: white space around it is passed over, references are resolved, once.

    What is no reference of XML stays as it is, so that a text whose writer did not escape it is read too.

    >>> read_text(" salt &amp; pepper & &amp;lt; ")
    'salt & pepper & &lt;'
    """
    return _REFERENCE.sub(_referenced, written.strip())


def format_selection(prompts: dict[str, str], reasoning: str) -> str:
    """A well-formed answer. Its readers (`rewards/agent_selection.py`, `rewards/formats/`) find the same texts.

    Args:
        prompts: agent name -> prompt, in the order of the answer.

    Raises:
        ValueError: a character that XML cannot hold.

    >>> format_selection({"blur_filter": "keep blur at most 0.75"}, "Too soft.")
    '<selection><reasoning>Too soft.</reasoning><agents><agent><name>blur_filter</name>\
<prompt>keep blur at most 0.75</prompt></agent></agents></selection>'
    """
    agents = "".join(
        f"<agent><name>{escape_text(name)}</name><prompt>{escape_text(prompt)}</prompt></agent>"
        for name, prompt in prompts.items()
    )
    return f"<selection><reasoning>{escape_text(reasoning)}</reasoning><agents>{agents}</agents></selection>"


VQA_SYSTEM_PROMPT = "Answer the question about the image with a single word or phrase."


def vqa_messages(question: str, answer_tags: bool = False) -> Messages:
    """The conversation of visual question answering.

    Args:
        answer_tags: ask for reasoning, and for the answer between <answer> tags.
    """
    system = VQA_SYSTEM_PROMPT
    if answer_tags:
        system = "Look at the image, think, and give the answer as a word or phrase: <answer>...</answer>"
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


IN_CONTEXT_STYLES = ("chat", "single_turn")
IN_CONTEXT_SYSTEM_PROMPT = (
    "Answer the question about the last image with a single word or phrase, the way the examples before it do."
)


def in_context_messages(
    question: str,
    shown: Sequence[tuple[str, str]] = (),
    style: str = "chat",
    system: str | None = IN_CONTEXT_SYSTEM_PROMPT,
    image_counts: Sequence[int] | None = None,
) -> list[dict]:
    """The conversation that asks a question about an image after showing solved examples.

    Args:
        shown: (question, answer) of the examples, in the order in which they are shown.
        style: "chat", a user turn (images, question) and an assistant turn (answer) for each example; "single_turn",
            one user turn with the images and `Question:<question> Short answer:<answer>` of each example. Either ends
            with the question itself, which the assistant's next turn answers.
        system: system text; with None the chat template decides.
        image_counts: number of images of each example and, last, of the question; by default one each.

    Raises:
        ValueError: an unknown style, or another number of counts than examples and question.

    >>> [turn["role"] for turn in in_context_messages("what is it?", [("what color?", "red")])]
    ['system', 'user', 'assistant', 'user']
    >>> in_context_messages("what?", [("is it?", "no")], "single_turn")[1]["content"][1]
    {'type': 'text', 'text': 'Question:is it? Short answer:no'}
    """
    if style not in IN_CONTEXT_STYLES:
        raise ValueError(f"prompt style: expected one of {', '.join(IN_CONTEXT_STYLES)}, found {style!r}")
    counts = [1] * (len(shown) + 1) if image_counts is None else list(image_counts)
    if len(counts) != len(shown) + 1:
        raise ValueError(f"image counts: expected {len(shown) + 1}, of each example and the question, found {counts}")
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    if style == "chat":
        for (example, answer), count in zip(shown, counts, strict=False):  # the last count is the question's
            messages.append({"role": "user", "content": _image_parts(count) + [{"type": "text", "text": example}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        messages.append({"role": "user", "content": _image_parts(counts[-1]) + [{"type": "text", "text": question}]})
        return messages
    parts = []
    for (text, answer), count in zip([*shown, (question, "")], counts, strict=True):
        parts += [*_image_parts(count), {"type": "text", "text": f"Question:{text} Short answer:{answer}"}]
    return [*messages, {"role": "user", "content": parts}]


def _image_parts(count: int) -> list[dict]:
    return [{"type": "image"}] * count
