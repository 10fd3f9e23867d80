"""Every filtering agent on a pool whose flaws are known, with prompts and with its default."""

import pytest

from filter_agents.registry import DEFAULT_AGENTS, build_agent

DROPPED_BY_DEFAULT = {
    "blur_filter": ["blurred"],
    "exposure_filter": ["dark", "white"],
    "resolution_filter": ["tiny", "coarse"],
    "aspect_ratio_filter": ["wide"],
    "exact_duplicate_filter": ["copy"],
    "near_duplicate_filter": ["copy", "alike"],
    "text_length_filter": ["short", "long"],
    "answer_consistency_filter": ["disputed"],
}


def _kept(name: str, prompt: str, pool) -> tuple[list, bool]:
    agent = build_agent(name)
    instruction = agent.read_prompt(prompt)
    hash(instruction.parameters)
    return agent.keep(str(pool), instruction.parameters), instruction.understood


def test_every_agent_without_a_model_is_tested():
    assert tuple(DROPPED_BY_DEFAULT) == DEFAULT_AGENTS


@pytest.mark.parametrize("prompt", ["", "be good", "use the default", "keep at most -", "&#0;\x00 ((("])
@pytest.mark.parametrize(("name", "dropped"), DROPPED_BY_DEFAULT.items())
def test_a_prompt_that_cannot_be_read_stands_for_the_default(flawed_pool, all_but, name, dropped, prompt):
    assert _kept(name, prompt, flawed_pool) == (all_but(*dropped), False)


@pytest.mark.parametrize(
    ("name", "prompt", "dropped"),
    [
        ("blur_filter", "keep blur at most 0.75", ["blurred"]),
        ("blur_filter", "keep blur at most 1", []),
        ("exposure_filter", "keep brightness at least 0.15", ["dark"]),
        ("exposure_filter", "keep clipping at most 0.7", ["white"]),
        ("exposure_filter", "drop clipping above 90% and brightness below 0.01", []),
        ("resolution_filter", "keep side at least 25", ["coarse"]),
        ("resolution_filter", "keep side at least 31 pixels", ["tiny", "coarse"]),
        ("resolution_filter", "keep side at least 24", []),
        ("aspect_ratio_filter", "keep aspect at most 3.125", []),
        ("aspect_ratio_filter", "drop aspect ratios over 3", ["wide"]),
        ("text_length_filter", "keep question words at least 3", ["short"]),
        ("text_length_filter", "question words at most 44", ["long"]),
        ("text_length_filter", "drop questions over 45 words and under 2", []),
        ("answer_consistency_filter", "keep agreement at least 50%", []),
        ("answer_consistency_filter", "drop agreement below 0.51", ["disputed"]),
        ("exact_duplicate_filter", "drop exact copies", ["copy"]),
        ("exact_duplicate_filter", "items must be UNIQUE", ["copy"]),
        ("near_duplicate_filter", "drop near copies", ["copy", "alike"]),
        ("near_duplicate_filter", "drop items with a distance below 5%", ["copy", "alike"]),
        ("near_duplicate_filter", "keep distance at least 0.05", ["copy", "alike"]),
        ("near_duplicate_filter", "copies have a distance of at most 0.05", ["copy", "alike"]),
    ],
)
def test_a_prompt_sets_the_bounds(flawed_pool, all_but, name, prompt, dropped):
    assert _kept(name, prompt, flawed_pool) == (all_but(*dropped), True)


def test_a_bound_may_keep_only_what_is_flawed_or_nothing(flawed_pool):
    assert _kept("blur_filter", "keep blur at least 0.9", flawed_pool) == (["blurred"], True)
    assert _kept("resolution_filter", "keep side above 100", flawed_pool) == ([], True)
    assert _kept("text_length_filter", "question words between 2 and 3", flawed_pool) == (["short"], True)


def test_a_bound_replaces_the_default_of_the_other_quantities(flawed_pool, all_but):
    assert _kept("exposure_filter", "clipping at most 0.7", flawed_pool) == (all_but("white"), True)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("blur_filter", "keep blur at most 75"),
        ("aspect_ratio_filter", "keep aspect at most 0.5"),
        ("answer_consistency_filter", "keep agreement at least 6"),
    ],
)
def test_an_impossible_bound_counts_as_one_that_cannot_be_read(flawed_pool, all_but, name, prompt):
    assert _kept(name, prompt, flawed_pool) == (all_but(*DROPPED_BY_DEFAULT[name]), False)


@pytest.mark.parametrize(
    ("prompt", "distance", "understood"),
    [
        ("drop near copies", 0.1, True),
        ("distance at most 0.25", 0.25, True),
        ("drop copies with a distance below 0.2", 0.2, True),
        ("copies with a distance of at most 30", 0.1, True),
        ("distance at most 30", 0.1, False),
        ("nothing of that", 0.1, False),
    ],
)
def test_the_distance_of_near_copies_is_read(prompt, distance, understood):
    instruction = build_agent("near_duplicate_filter").read_prompt(prompt)
    assert (instruction.parameters, instruction.understood) == ((distance,), understood)


def test_two_prompts_with_one_meaning_have_equal_parameters():
    agent = build_agent("exposure_filter")
    first = agent.read_prompt("keep brightness at least 0.2, clipping at most 50%")
    second = agent.read_prompt("Drop clipping above 0.5 and brightness below 20%, please.")
    assert first == second


@pytest.mark.parametrize("name", DROPPED_BY_DEFAULT)
def test_ids_are_kept_in_the_order_and_type_of_the_pool(make_pool_of, name):
    ids = [3, "b", 1, "1"]
    folder = make_pool_of(ids)
    kept, _ = _kept(name, "", folder)
    copies = name in ("exact_duplicate_filter", "near_duplicate_filter")
    assert kept == (ids[:1] if copies else ids)
