"""How good a selection of agents is: the names chosen, and what is left of the data when the agents really run."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from data.prompts import read_text
from data.reports.measurements import check_pools
from data.reports.pool import ItemId
from filter_agents.executor import Executor
from filter_agents.registry import build_agents
from rewards.base import Completion, Reward
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


class FilteringQuality(Reward):
    """F1 of the ids that remain after the selected agents really ran with their prompts, against the right ids.

    A completion without an <agents> element, or whose agents are all unknown, leaves nothing. Rows without a pool get
    `None`. Prompts that could not be read are logged as `filtering_quality/unread_prompts` (mean a completion).

    Args:
        agents: entries as in a recipe's `agents`; by default the recipe's own.
        execute: (pool folder, prompts by agent) -> remaining ids; replaces the agents, for tests and own executors.
    """

    name = "filtering_quality"
    columns = ("ground_truth_filtered_data", "pool")
    types: ClassVar = {"ground_truth_filtered_data": column_types.ids, "pool": column_types.text}
    optional = ("pool",)
    text_only = False

    def __init__(
        self,
        agents: Sequence[Any] | None = None,
        execute: Callable[[str, dict[str, str]], Iterable[ItemId]] | None = None,
    ):
        self._execute = execute
        self._executor: Any = None if execute else Executor(build_agents(agents))
        self._unread_prompts = 0

    def _remaining(self, pool: str, prompts: dict[str, str]) -> Iterable[ItemId]:
        if self._execute is not None:
            return self._execute(pool, prompts)
        outcome = self._executor.run(pool, prompts)
        self._unread_prompts += outcome.unread_prompts
        return outcome.kept

    def check_files(self, rows: Sequence[dict]) -> None:
        """Raises a `RecordError` that names all images of the rows' pools that agents could not read."""
        if self._executor is not None:
            check_pools(row["pool"] for row in rows if row.get("pool") is not None)

    def score(self, text: str, ground_truth_filtered_data: Sequence[ItemId], pool: str | None) -> float | None:
        if pool is None or ground_truth_filtered_data is None:
            return None
        selection = parse_selection(text).unescaped()
        remaining = () if selection.agents is None else self._remaining(pool, selection.prompts)
        return set_f1(remaining, ground_truth_filtered_data)

    @contextmanager
    def counting(self, completions: list[Completion], columns: dict) -> Iterator[None]:
        """Logs how many prompts could not be read while the block ran."""
        self._unread_prompts = 0
        yield
        if (log_metric := columns.get("log_metric")) is not None and completions:
            log_metric("filtering_quality/unread_prompts", self._unread_prompts / len(completions))

    def __call__(self, completions: list[Completion], **columns: Any) -> list[float | None]:
        with self.counting(completions, columns):
            return super().__call__(completions, **columns)


class Combined(Reward):
    """Weighted sum of `agent_selection` and `filtering_quality`; `None` where the latter does not apply.

    Args:
        agent_weight, filtering_weight: the two weights; the score ranges from 0 to their sum.
        agents, execute: see `FilteringQuality`.
    """

    name = "combined"
    columns = ("ground_truth_agents", "ground_truth_filtered_data", "pool")
    types: ClassVar = {**AgentSelection.types, **FilteringQuality.types}
    optional = ("pool",)
    text_only = False

    def __init__(
        self,
        agent_weight: float = 0.5,
        filtering_weight: float = 0.5,
        agents: Sequence[Any] | None = None,
        execute: Callable[[str, dict[str, str]], Iterable[ItemId]] | None = None,
    ):
        self.agent_weight = float(agent_weight)
        self.filtering_weight = float(filtering_weight)
        self.maximum = self.agent_weight + self.filtering_weight
        self._agent_selection = AgentSelection()
        self._filtering_quality = FilteringQuality(agents, execute)

    def check_files(self, rows: Sequence[dict]) -> None:
        """Raises a `RecordError` that names all images of the rows' pools that agents could not read."""
        self._filtering_quality.check_files(rows)

    def score(
        self, text: str, ground_truth_agents: Any, ground_truth_filtered_data: Any, pool: str | None
    ) -> float | None:
        filtering = self._filtering_quality.score(text, ground_truth_filtered_data, pool)
        selected = self._agent_selection.score(text, ground_truth_agents)
        if filtering is None or selected is None:
            return None
        return self.agent_weight * selected + self.filtering_weight * filtering

    def __call__(self, completions: list[Completion], **columns: Any) -> list[float | None]:
        with self._filtering_quality.counting(completions, columns):
            return super().__call__(completions, **columns)
