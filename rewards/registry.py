"""The only list of reward names, and how the rewards of a recipe are made from it.

In a recipe, `reward_funcs` is a list of entries, each of them

    agent_selection                                        a name from `REWARDS`
    my_package.rewards.brevity                             dotted path of a function or class of your own
    my_rewards.py:brevity                                  the same by its file
    {name: combined, agent_weight: 0.7, on_error: skip, max_error_rate: 0.05}    either, with parameters

Parameters go to the class, or are passed to the function at every call. `on_error` and `max_error_rate` say what
happens when the reward fails (`rewards/scoring/failure_policy.py`).
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.cli.user_code import import_named
from data.errors import UserError
from rewards.base import Reward
from rewards.scoring.columns import own_arguments
from rewards.scoring.failure_policy import GuardedReward
from rewards.scoring.guards import guard

REWARDS = {
    "agent_selection": "rewards.agent_selection.AgentSelection",
    "filtering_quality": "rewards.filtering_quality.FilteringQuality",
    "combined": "rewards.filtering_quality.Combined",
    "xml_format": "rewards.formats.xml_format.XmlFormat",
    "strict_xml_format": "rewards.formats.xml_format.StrictXmlFormat",
    "sentence_format": "rewards.formats.sentence_format.SentenceFormat",
    "vqa_accuracy": "rewards.vqa_accuracy.VqaAccuracy",
    "relevance": "rewards.relevance.RelevanceReward",
    "verdict_accuracy": "rewards.judging.accuracy.VerdictAccuracy",
    "candidate": "rewards.candidate.CandidateReward",
    "beam_score": "rewards.candidate.BeamScore",
    "example_sequence": "rewards.candidate.ExampleSequence",
    "reward_model": "rewards.reward_model.RewardModel",
    "judge": "rewards.judge.Judge",
}

ALIASES = {"format": "xml_format"}
"""What the original system of agent selection calls a reward; logs and files have the name of `REWARDS`."""

TABLES = ("query_table", "example_table")
"""Keys of recipes that rewards of chosen examples read, as parameters of the same names."""

_POLICY = ("on_error", "max_error_rate")
_NOT_IN_RECIPES = {"execute"}

RewardSpec = str | dict[str, Any]


class RewardSpecError(UserError, ValueError):
    """An entry of `reward_funcs` that names no reward, or gives it parameters that it does not take."""


def import_reward(name: str) -> Callable:
    """The class or function behind a name or dotted path.

    Raises:
        RewardSpecError: lists the valid names.
    """
    name = ALIASES.get(name, name)
    reward = import_named(REWARDS.get(name, name), "reward", list(REWARDS), RewardSpecError)
    if not callable(reward):
        raise RewardSpecError(f"reward '{name}': expected a function or class, found {reward!r:.80}")
    return reward


def reward_parameters(reward: Callable) -> dict[str, inspect.Parameter]:
    """Parameters that a recipe can give to a reward: of the class, or those of the function that have a default."""
    parameters = inspect.signature(reward).parameters
    if inspect.isclass(reward):
        return {name: value for name, value in parameters.items() if name not in _NOT_IN_RECIPES}
    return {name: value for name, value in parameters.items() if value.default is not inspect.Parameter.empty}


def _is_required(parameter: inspect.Parameter) -> bool:
    named = parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return named and parameter.default is inspect.Parameter.empty


def _split_spec(spec: RewardSpec) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name, parameters and failure policy of an entry."""
    if isinstance(spec, str):
        spec = {"name": spec}
    name = spec.get("name") if isinstance(spec, dict) else None
    if not isinstance(name, str):
        raise RewardSpecError(f"an entry of reward_funcs is a name or has a 'name', found {spec!r}")
    parameters = {key: value for key, value in spec.items() if key != "name" and key not in _POLICY}
    return ALIASES.get(name, name), parameters, {key: spec[key] for key in _POLICY if key in spec}


def spec_name(spec: RewardSpec) -> str:
    """The name under which an entry's scores are logged: the last part of a dotted path, or what follows a file."""
    return re.split("[.:]", _split_spec(spec)[0])[-1]


def with_tables(specs: Sequence[RewardSpec], recipe: Mapping[str, Any]) -> list[RewardSpec]:
    """Entries of `reward_funcs`, with the recipe's tables of embeddings for rewards that read some and name none.

    >>> with_tables(["example_sequence", "beam_score"], {"query_table": "q.safetensors", "example_table": None})
    [{'query_table': 'q.safetensors', 'name': 'example_sequence'}, 'beam_score']
    """
    given = {key: recipe[key] for key in TABLES if recipe.get(key) is not None}
    filled = []
    for spec in specs:
        allowed = reward_parameters(import_reward(_split_spec(spec)[0]))
        taken = {key: value for key, value in given.items() if key in allowed}
        filled.append({**taken, **({"name": spec} if isinstance(spec, str) else spec)} if taken else spec)
    return filled


def build_reward(spec: RewardSpec, agents: Sequence[str | dict] | None = None) -> GuardedReward:
    """The reward that one entry of a recipe's `reward_funcs` describes.

    Args:
        agents: the recipe's `agents`, for rewards with a parameter of this name that the entry does not give.

    Raises:
        RewardSpecError: unknown name or parameter, or a value that the reward refuses.
    """
    name, parameters, policy = _split_spec(spec)
    reward = import_reward(name)
    allowed = reward_parameters(reward)
    unknown = [key for key in parameters if key not in allowed]
    if unknown:
        expected = ", ".join((*allowed, *_POLICY)) or "none"
        raise RewardSpecError(f"reward '{name}' has no parameter '{unknown[0]}'; expected some of: {expected}")
    if "agents" in allowed and agents is not None:
        parameters.setdefault("agents", agents)
    missing = [key for key, value in allowed.items() if _is_required(value) and key not in parameters]
    if missing:
        raise RewardSpecError(f"reward '{name}': expected {' and '.join(missing)} beside its name, found none")
    try:
        function: Any = reward(**parameters) if inspect.isclass(reward) else functools.partial(reward, **parameters)
    except (TypeError, ValueError) as error:
        raise RewardSpecError(f"reward '{name}': {error}") from error
    try:
        return guard(function, spec_name(spec), **policy)
    except ValueError as error:
        raise RewardSpecError(str(error)) from error


def build_rewards(specs: Sequence[RewardSpec], agents: Sequence[str | dict] | None = None) -> list[GuardedReward]:
    """All rewards of a recipe, in order; names must differ."""
    if isinstance(specs, str | dict):
        raise RewardSpecError(f"reward_funcs: expected a list of entries, found {specs!r}")
    rewards = [build_reward(spec, agents) for spec in specs]
    names = [reward.name for reward in rewards]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RewardSpecError(f"duplicate reward '{repeated[0]}' in reward_funcs")
    return rewards


def check_weights(
    specs: Sequence[RewardSpec], weights: Sequence[float] | None, option: str = "reward_weights"
) -> None:
    """Raises `RewardSpecError` unless there is a finite weight for each entry of `reward_funcs`, or none at all.

    Args:
        option: what gives the weights, for the message.
    """
    if weights is not None and len(weights) != len(specs):
        names = ", ".join(map(spec_name, specs)) or "none"
        wanted = "1 number" if len(specs) == 1 else f"{len(specs)} numbers"
        raise RewardSpecError(f"{option}: expected {wanted}, one for each of {names}; found {weights}")
    if not all(isinstance(weight, int | float) and math.isfinite(weight) for weight in weights or ()):
        raise RewardSpecError(f"{option}: expected finite numbers, found {weights}")


def check_there(rewards: Sequence[GuardedReward]) -> None:
    """Raises an error where what a reward asks at an address does not answer."""
    for reward in rewards:
        if isinstance(reward.function, Reward):
            reward.function.check_there()


def needed_columns(reward: GuardedReward) -> tuple[str, ...]:
    """Columns that a reward declares, or those of its arguments that a user's own function has no default for."""
    return reward.function.columns if isinstance(reward.function, Reward) else own_arguments(reward.function)


def optional_columns(reward: GuardedReward) -> tuple[str, ...]:
    """Those of its columns that the data may lack."""
    return reward.function.optional if isinstance(reward.function, Reward) else ()
