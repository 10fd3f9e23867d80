"""The list of rewards, and making rewards from the entries of a recipe."""

import asyncio
import inspect
import pickle

import pytest

from filter_agents.registry import AgentError
from rewards.base import Reward
from rewards.eval import choose_specs
from rewards.registry import (
    REWARDS,
    RewardSpecError,
    build_reward,
    build_rewards,
    import_reward,
    needed_columns,
    reward_parameters,
    spec_name,
    with_tables,
)
from rewards.scoring.failure_policy import GuardedAsyncReward, GuardedReward

NAMES = ["agent_selection", "filtering_quality", "combined", "xml_format", "strict_xml_format", "vqa_accuracy"]
NAMES += [
    "sentence_format",
    "relevance",
    "candidate",
    "beam_score",
    "verdict_accuracy",
]  # `reward_model` needs a model
OWN = '''
class Brevity:
    """Shorter is better."""

    def __init__(self, limit: int = 10):
        self.limit = limit

    def __call__(self, completions, **columns):
        return [float(len(text) <= self.limit) for text in completions]


def shouting(completions, *, sign="!", **columns):
    """The share of completions' signs."""
    return [float(text.count(sign)) for text in completions]


async def slow(completions, factor=1.0, **columns):
    return [factor * len(text) for text in completions]


class Required:
    def __init__(self, model):
        self.model = model

    def __call__(self, completions, **columns):
        return [0.0 for _ in completions]


number = 3
'''


@pytest.fixture
def own(own_module) -> None:
    own_module("own_rewards", OWN)


# -- what every reward of the list keeps ------------------------------------------------------------------------------


def test_the_promised_rewards_exist():
    assert set(NAMES) <= set(REWARDS)


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_goes_by_its_name_and_says_what_it_is(name):
    reward = import_reward(name)
    assert inspect.getdoc(reward)
    if issubclass(reward, Reward):
        assert reward.name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_reward_survives_pickling(name, select):
    columns = {"ground_truth_agents": [["a"]], "ground_truth_filtered_data": [[1]], "pool": [None]}
    columns |= {"answers": [["cat"] * 10], "vqa_correct": [1], "beam_score": [0.5], "better": ["A"]}
    reward = build_reward(name)
    again = pickle.loads(pickle.dumps(reward))
    for completion in (select(("a", "p")), "cat"):
        assert again([completion], **columns) == reward([completion], **columns)
    assert again.failures == reward.failures == []


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("agent_selection", ("ground_truth_agents",)),
        ("filtering_quality", ("ground_truth_filtered_data", "pool")),
        ("combined", ("ground_truth_agents", "ground_truth_filtered_data", "pool")),
        ("xml_format", ()),
        ("strict_xml_format", ()),
        ("vqa_accuracy", ("answers",)),
        ("relevance", ("answers",)),
        ("beam_score", ("beam_score",)),
        ("verdict_accuracy", ("better",)),
    ],
)
def test_columns_that_rewards_need(name, columns):
    assert needed_columns(build_reward(name)) == columns


def test_columns_of_an_own_function_are_its_arguments_without_a_default(own):
    assert needed_columns(build_reward("own_rewards.shouting")) == ()


# -- entries ----------------------------------------------------------------------------------------------------------


def test_a_name_is_enough():
    reward = build_reward("agent_selection")
    assert isinstance(reward, GuardedReward)
    assert (reward.name, reward.on_error, reward.max_error_rate) == ("agent_selection", "raise", 0.1)


def test_parameters_and_policy_stand_beside_the_name():
    spec = {"name": "combined", "agent_weight": 0.7, "filtering_weight": 3, "on_error": "skip", "max_error_rate": 0.5}
    reward = build_reward(spec)
    assert (reward.function.agent_weight, reward.function.filtering_weight) == (0.7, 3.0)
    assert (reward.on_error, reward.max_error_rate) == ("skip", 0.5)
    assert spec["name"] == "combined"  # the recipe is left as it was


def test_the_recipes_agents_go_to_the_rewards_that_take_them(select):
    strict = [select(("exposure_filter", "p")), select(("blur_filter", "p"))]
    assert build_reward("strict_xml_format", agents=["blur_filter"])(strict) == [0.0, 1.0]
    own_agents = {"name": "strict_xml_format", "agents": ["exposure_filter"]}
    assert build_reward(own_agents, agents=["blur_filter"])(strict) == [1.0, 0.0]
    assert build_reward("xml_format", agents=["blur_filter"])(strict) == [1.0, 1.0]


def test_a_dotted_path_names_a_class_of_ones_own(own):
    reward = build_reward({"name": "own_rewards.Brevity", "limit": 3})
    assert reward.name == "Brevity"
    assert reward(["abc", "abcd"]) == [1.0, 0.0]


def test_a_dotted_path_names_a_function_of_ones_own(own):
    assert build_reward("own_rewards.shouting")(["a!!", "b?"]) == [2.0, 0.0]
    assert build_reward({"name": "own_rewards.shouting", "sign": "?"})(["a!!", "b?"]) == [0.0, 1.0]


def test_an_async_function_of_ones_own_stays_async_with_parameters(own):
    reward = build_reward({"name": "own_rewards.slow", "factor": 2.0})
    assert isinstance(reward, GuardedAsyncReward)
    assert asyncio.run(reward(["a", "bcd"])) == [2.0, 6.0]


def test_a_dotted_path_may_lead_to_a_built_in_reward():
    assert build_reward("rewards.formats.xml_format.XmlFormat")(["x"]) == [0.0]


@pytest.mark.parametrize(
    ("spec", "name"),
    [("combined", "combined"), ({"name": "a.b.Judge", "limit": 1}, "Judge"), ("own.brevity", "brevity")],
)
def test_names_for_logs(spec, name):
    assert spec_name(spec) == name


def test_all_rewards_of_a_recipe_in_order():
    rewards = build_rewards(["xml_format", {"name": "combined", "on_error": "skip"}, "vqa_accuracy"])
    assert [(reward.name, reward.on_error) for reward in rewards] == [
        ("xml_format", "raise"),
        ("combined", "skip"),
        ("vqa_accuracy", "raise"),
    ]


def test_parameters_that_a_recipe_can_give():
    assert list(reward_parameters(import_reward("combined"))) == ["agent_weight", "filtering_weight", "agents"]


# -- errors -----------------------------------------------------------------------------------------------------------

ALL_NAMES = ", ".join(REWARDS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("agent_selektion", f"unknown reward 'agent_selektion'; expected one of {ALL_NAMES}"),
        ("", f"unknown reward ''; expected one of {ALL_NAMES}"),
        ("no_such_module.reward", f"reward 'no_such_module.reward': cannot be imported .*known names: {ALL_NAMES}"),
        ("own_rewards.nothing", f"reward 'own_rewards.nothing': cannot be imported .*known names: {ALL_NAMES}"),
        ("own_rewards.number", "reward 'own_rewards.number'.*(callable|function)"),
        ("own_rewards.Required", "reward 'own_rewards.Required': expected model beside its name, found none"),
        (
            {"name": "combined", "agent_wait": 1},
            "'combined' has no parameter 'agent_wait'; expected some of: "
            "agent_weight, filtering_weight, agents, on_error, max_error_rate",
        ),
        (
            {"name": "combined", "execute": "x"},
            "'combined' has no parameter 'execute'; expected some of: agent_weight",
        ),
        ({"name": "xml_format", "strict": True}, "no parameter 'strict'; expected some of: on_error, max_error_rate"),
        (
            {"name": "own_rewards.Brevity", "limits": 3},
            "'own_rewards.Brevity' has no parameter 'limits'; expected some of: limit, on_error",
        ),
        (
            {"name": "own_rewards.shouting", "completions": 3},
            "no parameter 'completions'; expected some of: sign, on_error",
        ),
        ({"name": "combined", "agent_weight": "much"}, "reward 'combined': could not convert string to float: 'much'"),
        ({"name": "combined", "on_error": "ignore"}, "^reward 'combined': on_error: expected one of raise, skip"),
        ({"name": "combined", "max_error_rate": 2}, "^reward 'combined': max_error_rate: expected 0 to 1, found 2"),
        ({"agent_weight": 1}, "an entry of reward_funcs is a name or has a 'name', found {'agent_weight': 1}"),
        ({"name": ["combined"]}, "an entry of reward_funcs is a name or has a 'name'"),
        (3, "an entry of reward_funcs is a name or has a 'name', found 3"),
        (None, "an entry of reward_funcs is a name or has a 'name', found None"),
    ],
    ids=str,
)
def test_wrong_entries_say_what_is_allowed(own, spec, message):
    with pytest.raises(RewardSpecError, match=message):
        build_reward(spec)


def test_wrong_agents_are_named_before_anything_runs():
    with pytest.raises((AgentError, RewardSpecError), match="unknown agent 'blurr'; expected one of blur_filter"):
        build_reward("filtering_quality", agents=["blurr"])


@pytest.mark.parametrize("specs", ["xml_format", {"name": "xml_format"}])
def test_a_single_entry_is_not_a_list(specs):
    with pytest.raises(RewardSpecError, match="reward_funcs: expected a list of entries, found"):
        build_rewards(specs)


def test_names_must_differ(own):
    with pytest.raises(RewardSpecError, match="duplicate reward 'combined' in reward_funcs"):
        build_rewards(["combined", "xml_format", {"name": "combined", "agent_weight": 1}])


# -- what the recipe gives --------------------------------------------------------------------------------------------

RECIPE = {"query_table": "q.safetensors", "example_table": "e.safetensors", "reward_funcs": ["example_sequence"]}


def test_rewards_of_chosen_examples_read_the_recipes_tables():
    tables = {"query_table": "q.safetensors", "example_table": "e.safetensors"}
    own = {"name": "example_sequence", "query_table": "mine.pt"}
    assert with_tables(["example_sequence", "beam_score", own], RECIPE) == [
        {"name": "example_sequence", **tables},
        "beam_score",
        {**own, "example_table": "e.safetensors"},
    ]
    assert with_tables(["example_sequence"], {"query_table": None}) == ["example_sequence"]
    for names in (None, ["example_sequence"]):
        assert choose_specs(names, RECIPE, "raise") == [
            {"name": "example_sequence", "on_error": "raise", "max_error_rate": 1.0, **tables}
        ]


# -- other names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["format", {"name": "format", "on_error": "skip"}])
def test_format_is_the_original_systems_name_of_xml_format(spec, select):
    reward = build_reward(spec)
    assert (reward.name, spec_name(spec), import_reward("format")) == ("xml_format",) * 2 + (type(reward.function),)
    assert reward([select(("a", "p")), "<agents>"]) == [1.0, 0.0]


def test_a_reward_stands_once_whatever_it_is_called():
    with pytest.raises(RewardSpecError, match="duplicate reward 'xml_format' in reward_funcs"):
        build_rewards(["format", "xml_format"])


@pytest.mark.parametrize(("asked", "named"), [("format", "xml_format"), ("xml_format", "format"), ("format",) * 2])
def test_an_entry_of_the_recipe_is_found_by_either_name(asked, named):
    recipe = {"reward_funcs": [{"name": named, "max_error_rate": 0.5}]}
    assert choose_specs([asked], recipe, "skip") == [{"name": named, "max_error_rate": 0.5, "on_error": "skip"}]
