"""The only list of agent names, and how the agents of a recipe are made from it.

In a recipe, `agents` is a list of entries, each of them

    blur_filter                                  a name from `AGENTS`
    my_package.my_module.MyAgent                 dotted path of a `FilterAgent` of your own, or my_module.py:MyAgent
    {name: vlm_judge, model: Qwen/Qwen2-VL-2B-Instruct, batch_size: 16}    either, with arguments
"""

import inspect
from collections.abc import Sequence

from data.cli.user_code import import_named
from data.errors import UserError
from filter_agents.base import FilterAgent

AGENTS = {
    "blur_filter": "filter_agents.measurement_filters.BlurFilter",
    "exposure_filter": "filter_agents.measurement_filters.ExposureFilter",
    "resolution_filter": "filter_agents.measurement_filters.ResolutionFilter",
    "aspect_ratio_filter": "filter_agents.measurement_filters.AspectRatioFilter",
    "exact_duplicate_filter": "filter_agents.duplicates.ExactDuplicateFilter",
    "near_duplicate_filter": "filter_agents.duplicates.NearDuplicateFilter",
    "text_length_filter": "filter_agents.measurement_filters.TextLengthFilter",
    "answer_consistency_filter": "filter_agents.measurement_filters.AnswerConsistencyFilter",
    "vlm_judge": "filter_agents.vlm_judge.VlmJudge",
}
DEFAULT_AGENTS = tuple(name for name in AGENTS if name != "vlm_judge")
"""All that need no model."""

AgentSpec = str | dict


class AgentError(UserError, ValueError):
    """An entry of `agents` that names no agent, or gives it arguments that it does not take."""


def build_agent(spec: AgentSpec) -> FilterAgent:
    """The agent that one entry of a recipe's `agents` describes.

    Raises:
        AgentError: see the class.
    """
    arguments = {"name": spec} if isinstance(spec, str) else spec
    arguments = dict(arguments) if isinstance(arguments, dict) else {}
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise AgentError(f"an entry of agents needs a 'name', found {spec!r}")
    factory = import_named(AGENTS.get(name, name), "agent", list(AGENTS), AgentError)
    if not (inspect.isclass(factory) and issubclass(factory, FilterAgent)):
        raise AgentError(f"agent '{name}': expected a subclass of filter_agents.base.FilterAgent, found {factory!r}")
    if inspect.isabstract(factory):
        missing = ", ".join(sorted(factory.__abstractmethods__))
        raise AgentError(f"agent '{name}': its class does not define {missing}")
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise AgentError(f"agent '{name}': {error}; it takes {inspect.signature(factory)}") from error
    agent = factory(**arguments)
    for attribute in ("name", "description"):
        if not isinstance(getattr(agent, attribute, None), str):
            raise AgentError(f"agent '{name}': its class sets no '{attribute}'")
    return agent


def build_agents(specs: Sequence[AgentSpec] | None = None) -> dict[str, FilterAgent]:
    """Agents by name, in the order given; by default every built-in one that needs no model."""
    agents: dict[str, FilterAgent] = {}
    for spec in specs if specs is not None else DEFAULT_AGENTS:
        agent = build_agent(spec)
        if agent.name in agents:
            raise AgentError(f"duplicate agent '{agent.name}' in agents")
        agents[agent.name] = agent
    return agents


def described_agents(specs: Sequence[AgentSpec] | None = None) -> list[tuple[str, str]]:
    """(name, description) of the same agents, as prompts list them."""
    return [(agent.name, agent.description) for agent in build_agents(specs).values()]
