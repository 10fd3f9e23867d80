"""Runs the agents that a model selected on the data set that its report was about."""

from collections import OrderedDict
from dataclasses import dataclass

from data.reports.pool import ItemId, load_pool
from filter_agents.base import CopiesAgent, FilterAgent


@dataclass(frozen=True)
class Outcome:
    """What a selection did.

    Attributes:
        kept: ids that every agent kept, in the pool's order.
        unread_prompts: prompts that could not be read, so that the agent's default was taken.
        unknown_agents: names that no agent has; they do nothing.
    """

    kept: list[ItemId]
    unread_prompts: int = 0
    unknown_agents: int = 0


class Executor:
    """Runs selections of agents, remembering what each agent kept of a data set.

    Args:
        agents: by name, from `filter_agents.registry.build_agents`.
        cache_size: results remembered; the oldest are forgotten first.

    Raises:
        UserError: see `FilterAgent.check_there`.
    """

    def __init__(self, agents: dict[str, FilterAgent], cache_size: int = 65_536):
        self.agents = agents
        self.cache_size = cache_size
        for agent in agents.values():
            agent.check_there()
        self._cache: OrderedDict[tuple, frozenset[ItemId]] = OrderedDict()

    def _keep(self, pool_folder: str, name: str, parameters: tuple, remaining: frozenset[ItemId]) -> frozenset[ItemId]:
        """Those of the remaining ids that an agent keeps."""
        agent = self.agents[name]
        key = (pool_folder, name, parameters, remaining if isinstance(agent, CopiesAgent) else None)
        if key not in self._cache:
            kept = (
                agent.keep_among(pool_folder, parameters, remaining)
                if isinstance(agent, CopiesAgent)
                else agent.keep(pool_folder, parameters)
            )
            self._cache[key] = frozenset(kept)
            if len(self._cache) > self.cache_size:
                self._cache.popitem(last=False)
        return self._cache[key] & remaining

    def run(self, pool_folder: str, prompts: dict[str, str]) -> Outcome:
        """What remains of a pool.

        Agents that drop copies run last, in the order of their names: the order of the selection changes nothing, and
        an item is no copy of one that another agent drops.

        Args:
            pool_folder: the data set (`data/reports/pool.py`).
            prompts: agent name -> the prompt written for it.

        Returns:
            The items that all selected agents keep: everything for an empty selection, nothing for one that names
            only unknown agents (it cannot be carried out).
        """
        known = [name for name in prompts if name in self.agents]
        unknown = len(prompts) - len(known)
        if prompts and not known:
            return Outcome([], unknown_agents=unknown)
        pool_ids = load_pool(pool_folder).ids
        kept = frozenset(pool_ids)
        unread = 0
        for name in sorted(known, key=lambda name: (isinstance(self.agents[name], CopiesAgent), name)):
            instruction = self.agents[name].read_prompt(prompts[name])
            unread += not instruction.understood
            kept = self._keep(pool_folder, name, instruction.parameters, kept)
        return Outcome([item_id for item_id in pool_ids if item_id in kept], unread, unknown)
