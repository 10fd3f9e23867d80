"""F1 of what is left of the data when the selected agents really run; alone, or together with that of their names."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from data.reports.measurements import check_pools
from data.reports.pool import ItemId
from filter_agents.executor import Executor
from filter_agents.registry import build_agents
from rewards.agent_selection import AgentSelection, parse_selection, set_f1
from rewards.base import Completion, Reward
from rewards.scoring import columns as column_types


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
