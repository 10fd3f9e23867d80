"""Every reward of the registry on anything a model could write: it never raises and stays within its range."""

import inspect
import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filter_agents.registry import DEFAULT_AGENTS
from rewards.agent_selection import parse_selection
from rewards.formats.xml_format import StrictXmlFormat, XmlFormat, read_strict_selection
from rewards.registry import REWARDS, build_reward, import_reward, needed_columns, reward_parameters

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
"""A busy machine is not a failure."""

ELEMENTS = ("selection", "reasoning", "agents", "agent", "name", "prompt", "answer", "verdict")
TAGS = [f"<{slash}{name}>" for name in ELEMENTS for slash in ("", "/")]
WORDS = [
    "blur_filter",
    "exposure_filter",
    " keep blur at most 0.5 ",
    "drop brightness below 20%",
    "two",
    "2,5",
    "yes.",
]
SIGNS = ["<", ">", "&amp;", "&", "<!--", "-->", "<![CDATA[", "<agent ", "\n", "\x00", "\ud83d", "é", "٣", "]]>"]

texts = st.text(max_size=60)
soups = st.lists(st.sampled_from(TAGS * 3 + WORDS * 2 + SIGNS) | st.text(max_size=5), max_size=30).map("".join)
nearly_right = st.lists(
    st.tuples(st.sampled_from([*DEFAULT_AGENTS, "other", ""]), st.sampled_from([*WORDS, ""]) | texts), max_size=4
).map(
    lambda pairs: (
        "<selection><reasoning>r</reasoning><agents>"
        + "".join(f"<agent><name>{name}</name><prompt>{prompt}</prompt></agent>" for name, prompt in pairs)
        + "</agents></selection>"
    )
)
written = texts | soups | nearly_right
parts = st.fixed_dictionaries({"type": st.just("text"), "text": written}) | st.just({"type": "image"})
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": written | st.none() | st.lists(parts, max_size=3)}
    ),
    max_size=3,
)
completions = written | messages
ids = st.integers(0, 6) | st.sampled_from(["e5", "x"])


def column_strategies(pool: str) -> dict[str, st.SearchStrategy]:
    """What a data set can hold in each column that a reward reads."""
    names = st.sampled_from([*DEFAULT_AGENTS, "other"])
    answers = st.lists(texts | st.sampled_from(WORDS), max_size=15)
    share, number = (st.none() | st.floats(low, 1, allow_nan=False) for low in (0, -1e18))
    return {
        "ground_truth_agents": st.lists(names, max_size=5) | names,
        "ground_truth_filtered_data": st.lists(ids, max_size=7),
        "pool": st.none() | st.just(pool),
        "answers": answers | answers.map(lambda found: [{"answer": answer} for answer in found]),
        "better": st.sampled_from([None, "A", "B"]),
        "vqa_correct": st.sampled_from([None, 0, 1, True, False]),
        **dict.fromkeys(("vqa_acc_score", "vqa_gt_prob", "vqa_rel_score"), share),
        **dict.fromkeys(("beam_score", "logprob_score"), number),
    }


def needs_a_model(name: str) -> bool:
    """Whether a reward has a parameter without default: what it cannot choose itself is a model or a service."""
    parameters = reward_parameters(import_reward(name)).values()
    return any(parameter.default is inspect.Parameter.empty for parameter in parameters)


FUZZED = [name for name in REWARDS if not needs_a_model(name)]


@pytest.fixture(scope="module")
def reward_and_columns(pool):
    """Function: name of a reward -> the guarded reward, and a strategy for a row of its columns."""
    known = column_strategies(pool)

    def make(name: str):
        reward = build_reward(name)
        unknown = set(needed_columns(reward)) - set(known)
        assert not unknown, f"reward '{name}' reads {unknown}: say in column_strategies what such a column can hold"
        return reward, st.fixed_dictionaries({column: known[column] for column in needed_columns(reward)})

    return make


@pytest.mark.parametrize("name", FUZZED)
@settings(PATIENT, max_examples=150)
@given(data=st.data())
def test_scores_are_none_or_within_the_range(reward_and_columns, name, data):
    reward, row = reward_and_columns(name)
    batch = data.draw(st.lists(st.tuples(completions, row), min_size=1, max_size=4))
    columns = {column: [row[column] for _, row in batch] for column in needed_columns(reward)}
    scores = reward([completion for completion, _ in batch], **columns)
    assert reward.failures == []
    assert len(scores) == len(batch)
    for score in scores:
        assert score is None or (
            type(score) is float
            and math.isfinite(score)
            and reward.function.minimum <= score <= reward.function.maximum
        )


@pytest.mark.parametrize("name", FUZZED)
@settings(PATIENT, max_examples=40)
@given(data=st.data())
def test_rows_are_scored_independently_of_their_batch(reward_and_columns, name, data):
    reward, row = reward_and_columns(name)
    batch = data.draw(st.lists(st.tuples(completions, row), min_size=1, max_size=4))
    needed = needed_columns(reward)
    together = reward([text for text, _ in batch], **{key: [row[key] for _, row in batch] for key in needed})
    alone = [reward([text], **{key: [row[key]] for key in needed})[0] for text, row in batch]
    assert together == alone


@settings(PATIENT, max_examples=500)
@given(written)
def test_selections_are_parsed_as_the_originals_regular_expressions_do(text):
    block = re.search(r"<agents>(.*?)</agents>", text, re.DOTALL)
    agents, prompts = [], {}
    for agent in re.findall(r"<agent>(.*?)</agent>", block.group(1), re.DOTALL) if block else []:
        name = re.search(r"<name>(.*?)</name>", agent, re.DOTALL)
        prompt = re.search(r"<prompt>(.*?)</prompt>", agent, re.DOTALL)
        if name:
            agents.append(name.group(1).strip())
            prompts[agents[-1]] = prompt.group(1).strip() if prompt else ""
    selection = parse_selection(text)
    assert selection.agents == (agents if block else None)
    assert selection.prompts == prompts


@settings(PATIENT, max_examples=500)
@given(written)
def test_the_lenient_format_is_the_originals_regular_expression(text):
    pattern = r"<selection>.*?<reasoning>.*?</reasoning>.*?<agents>.*?</agents>.*?</selection>"
    [score] = XmlFormat()([text])
    assert score == float(re.search(pattern, text, re.DOTALL) is not None)


@settings(PATIENT, max_examples=300)
@given(nearly_right | soups)
def test_a_strict_selection_is_made_of_known_agents_each_once_with_a_prompt(text):
    [score] = StrictXmlFormat()([text])
    found = read_strict_selection(text)
    names = [] if found is None else [name for name, _ in found]
    valid = set(names) <= set(DEFAULT_AGENTS) | {"vlm_judge"} and len(names) == len(set(names))
    assert score == float(found is not None and valid and all(prompt.strip() for _, prompt in found))


@settings(PATIENT, max_examples=300)
@given(nearly_right)
def test_the_strict_reader_agrees_with_an_xml_tree(text):
    from xml.etree import ElementTree

    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeEncodeError):
        assert read_strict_selection(text) is None
        return
    found = read_strict_selection(text)
    if found is not None:
        agents = tree.findall("./agents/agent")
        assert found == [((agent[0].text or "").strip(), (agent[1].text or "").strip()) for agent in agents]
        assert {element.tag for element in tree.iter()} <= {
            "selection",
            "reasoning",
            "agents",
            "agent",
            "name",
            "prompt",
        }
