"""Selections of agents: how a completion is read, and the F1 of the names that it chooses."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from data.prompts import read_text
from rewards.base import Reward
from rewards.scoring import columns as column_types


@dataclass(frozen=True, slots=True)
class Selection:
    """What a completion selects, letter by letter.

    Attributes:
        agents: names in the order written, repeated ones kept; `None` if there is no <agents> element.
        prompts: the prompt of each name, empty where none was written; of repeated names the last one counts.
    """

    agents: list[str] | None
    prompts: dict[str, str]

    def unescaped(self) -> "Selection":
        """What the texts mean, for whoever uses them: `&amp;` as `&`, as `data.prompts.format_selection` wrote it."""
        agents = None if self.agents is None else [read_text(name) for name in self.agents]
        return Selection(agents, {read_text(name): read_text(prompt) for name, prompt in self.prompts.items()})


def _between(text: str, opening: str, closing: str, start: int, end: int) -> str | None:
    """What stands between the first `opening` and the next `closing` of a span; one pass over the text."""
    begin = text.find(opening, start, end)
    if begin < 0:
        return None
    begin += len(opening)
    stop = text.find(closing, begin, end)
    return None if stop < 0 else text[begin:stop]


def parse_selection(text: str) -> Selection:
    """Reads a selection as leniently as the original system does.

    The first <agents> element counts; in it every <agent> with a <name>; in each the first name and the first prompt,
    both stripped. Tags elsewhere, bad nesting and text between are passed over. Takes time linear in the text.
    """
    position = text.find("<agents>")
    end = text.find("</agents>", position) if position >= 0 else -1
    if end < 0:
        return Selection(None, {})
    agents: list[str] = []
    prompts: dict[str, str] = {}
    while (start := text.find("<agent>", position, end)) >= 0 and (stop := text.find("</agent>", start, end)) >= 0:
        name = _between(text, "<name>", "</name>", start, stop)
        if name is not None:
            name = name.strip()
            prompt = _between(text, "<prompt>", "</prompt>", start, stop)
            agents.append(name)
            prompts[name] = "" if prompt is None else prompt.strip()
        position = stop
    return Selection(agents, prompts)


def set_f1(predicted: Iterable[Hashable], expected: Iterable[Hashable]) -> float:
    """F1 of two sets; 1 if both are empty, 0 if one is.

    >>> set_f1(["a", "b"], ["b", "c"])
    0.5
    """
    predicted, expected = set(predicted), set(expected)
    if not predicted and not expected:
        return 1.0
    return 2 * len(predicted & expected) / (len(predicted) + len(expected))


class AgentSelection(Reward):
    """F1 of the set of selected agent names against the right ones; `None` for rows of another task."""

    name = "agent_selection"
    columns = ("ground_truth_agents",)
    types: ClassVar = {"ground_truth_agents": column_types.names}

    def score(self, text: str, ground_truth_agents: Sequence[str] | None) -> float | None:
        if ground_truth_agents is None:
            return None
        return set_f1(parse_selection(text).unescaped().agents or (), ground_truth_agents)
