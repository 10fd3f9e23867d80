"""Agent selection, filtering quality and their sum on selections written by hand, with agents that really run."""

import pytest

from filter_agents.registry import AgentError
from rewards.agent_selection import AgentSelection, parse_selection, set_f1
from rewards.filtering_quality import Combined, FilteringQuality
from rewards.scoring.columns import ColumnError

AGENTS = ["text_length_filter", "exposure_filter", "exact_duplicate_filter"]
LONG_QUESTIONS = ("text_length_filter", "keep question words at least 4")  # drops 3
BRIGHT = ("exposure_filter", "keep brightness at least 0.5")  # drops 2
NO_COPIES = ("exact_duplicate_filter", "drop exact copies")  # drops 4
GOOD = [1, "e5"]


class Metrics(dict):
    """Stands for TRL's `log_metric`: remembers what was logged."""

    def __call__(self, name: str, value: float) -> None:
        self[name] = value


@pytest.fixture(scope="module")
def quality() -> FilteringQuality:
    return FilteringQuality(agents=AGENTS)


def measure(reward, pool, completion, truth=GOOD) -> float | None:
    """The score of one completion."""
    [score] = reward([completion], ground_truth_filtered_data=[truth], pool=[pool])
    return score


# -- parsing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "agents", "prompts"),
    [
        ("", None, {}),
        ("<agents>", None, {}),
        ("</agents><agents>", None, {}),
        ("<agents></agents>", [], {}),
        ("<agents><name>a</name></agents>", [], {}),  # no agent element around it
        ("<agents><agent></agent></agents>", [], {}),
        ("<agents><agent><name>a</name></agent></agents>", ["a"], {"a": ""}),
        ("<agents><agent><name> a\n</name><prompt>\tp q </prompt></agent></agents>", ["a"], {"a": "p q"}),
        ("<agents><agent><prompt>p</prompt><name>a</name></agent></agents>", ["a"], {"a": "p"}),
        ("<agents><agent><name></name><prompt>p</prompt></agent></agents>", [""], {"": "p"}),
        ("<agents><agent><name>a</name><name>b</name></agent></agents>", ["a"], {"a": ""}),
        ("<agents><agent><name>a</agent></name></agents>", [], {}),
        ("<agents><agent><name>a</name></agents></agent></agents>", [], {}),
        ("<agents><agent><agent><name>a</name></agent></agent></agents>", ["a"], {"a": ""}),
        ("<agents></agents><agents><agent><name>b</name></agent></agents>", [], {}),
        ("x<agents>y<agent>z<name>a</name>!<prompt>p</prompt>?</agent>,</agents>.", ["a"], {"a": "p"}),
        ("<Agents><Agent><Name>a</Name></Agent></Agents>", None, {}),
        ('<agents><agent id="1"><name>a</name></agent></agents>', [], {}),
        ("<agents><agent><name>a<b</name></agent></agents>", ["a<b"], {"a<b": ""}),
    ],
)  # fmt: skip
def test_parsing(text, agents, prompts):
    selection = parse_selection(text)
    assert selection.agents == agents
    assert selection.prompts == prompts


def test_of_repeated_agents_the_last_prompt_counts(select):
    selection = parse_selection(select(("a", "first"), ("b", ""), ("a", "last")))
    assert selection.agents == ["a", "b", "a"]
    assert selection.prompts == {"a": "last", "b": ""}


# -- agent_selection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "expected", "f1"),
    [
        ([], [], 1.0),
        ([], ["a"], 0.0),
        (["a"], [], 0.0),
        (["a"], ["b"], 0.0),
        (["a"], ["a"], 1.0),
        (["a", "b"], ["a"], 2 / 3),  # precision 1/2, recall 1
        (["a", "b", "c"], ["b", "c", "d", "e"], 4 / 7),  # precision 2/3, recall 2/4
        (["a", "a", "b"], ["a"], 2 / 3),  # as sets
        ([1], ["1"], 0.0),  # ids keep their type
    ],
)
def test_f1_of_sets(predicted, expected, f1):
    assert set_f1(predicted, expected) == f1


def test_f1_takes_iterators():
    assert set_f1(iter("ab"), (letter for letter in "bc")) == 0.5


def test_agent_selection_compares_names_as_sets(select):
    completions = [select(("a", "x"), ("b", "y")), select(("a", ""), ("a", "")), "none", "none"]
    truths = [["b", "a"], ["a", "b"], ["a"], []]
    assert AgentSelection()(completions, ground_truth_agents=truths) == [1.0, 2 / 3, 0.0, 1.0]


def test_one_agent_may_be_given_as_a_text(select):
    completions = [select(("ab", "x")), select(("a", "x"), ("b", "y"))]
    assert AgentSelection()(completions, ground_truth_agents=["ab", "ab"]) == [1.0, 0.0]


def test_chat_messages_are_read_by_their_last_turn(select):
    right = select(("a", "x"))
    completions = [
        [{"role": "assistant", "content": right}],
        [{"role": "assistant", "content": right}, {"role": "assistant", "content": "never mind"}],
        [{"role": "assistant", "content": [{"type": "text", "text": part} for part in (right[:30], right[30:])]}],
        [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": right}]}],
        [{"role": "assistant", "content": None}],
        [],
    ]
    scores = AgentSelection()(completions, ground_truth_agents=[["a"]] * 6)
    assert scores == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_missing_column_is_named():
    with pytest.raises(
        ColumnError, match="'agent_selection' needs the column 'ground_truth_agents'; the data has: answers, id$"
    ):
        AgentSelection()(["x"], id=["1"], answers=[["a"]])


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match="shorter|longer"):
        AgentSelection()(["x", "y"], ground_truth_agents=[["a"]])


# -- filtering_quality ------------------------------------------------------------------------------------------------


def test_the_right_agents_leave_the_right_items(quality, pool, select):
    assert measure(quality, pool, select(LONG_QUESTIONS, BRIGHT, NO_COPIES)) == 1.0


def test_the_order_of_agents_does_not_matter(quality, pool, select):
    assert measure(quality, pool, select(NO_COPIES, BRIGHT, LONG_QUESTIONS)) == 1.0


@pytest.mark.parametrize(
    ("agents", "left"),
    [
        ([LONG_QUESTIONS], [1, 2, 4, "e5"]),
        ([BRIGHT], [1, 3, 4, "e5"]),
        ([NO_COPIES], [1, 2, 3, "e5"]),
        ([LONG_QUESTIONS, BRIGHT], [1, 4, "e5"]),
        ([BRIGHT, NO_COPIES], [1, 3, "e5"]),
        ([("exposure_filter", "drop brightness above 0.5")], [2]),
        ([("exposure_filter", "keep brightness at most 0.5"), LONG_QUESTIONS], [2]),
        ([("exposure_filter", "keep brightness at most 0.01")], []),
    ],
)
def test_what_agents_leave(quality, pool, select, agents, left):
    assert measure(quality, pool, select(*agents), left) == 1.0
    assert measure(quality, pool, select(*agents), [1, 2, 3, 4, "e5", "more"]) < 1.0


def test_part_of_the_right_agents_scores_by_f1(quality, pool, select):
    assert measure(quality, pool, select(LONG_QUESTIONS, BRIGHT)) == 0.8  # {1, 4, e5}: 2 * 2 / (3 + 2)


def test_an_empty_selection_keeps_everything(quality, pool, select):
    assert measure(quality, pool, select(), [1, 2, 3, 4, "e5"]) == 1.0
    assert measure(quality, pool, select()) == 4 / 7  # 2 * 2 / (5 + 2)


def test_only_unknown_agents_leave_nothing(quality, pool, select):
    assert measure(quality, pool, select(("blur_filter", "keep blur at most 1"))) == 0.0  # not among this recipe's
    assert measure(quality, pool, select(("nonsense", "")), []) == 1.0


def test_an_unknown_agent_beside_a_known_one_does_nothing(quality, pool, select):
    assert measure(quality, pool, select(("nonsense", "drop all"), BRIGHT), [1, 3, 4, "e5"]) == 1.0


def test_no_agents_element_leaves_nothing(quality, pool):
    assert measure(quality, pool, "keep the bright ones") == 0.0
    assert measure(quality, pool, "keep the bright ones", []) == 1.0


def test_rows_without_a_pool_get_none(quality, pool, select):
    right = select(LONG_QUESTIONS, BRIGHT, NO_COPIES)
    scores = quality([right] * 3, ground_truth_filtered_data=[GOOD] * 3, pool=[None, pool, None])
    assert scores == [None, 1.0, None]


def test_an_unread_prompt_takes_the_default(quality, pool, select):
    vague = ("text_length_filter", "make it nice")  # default: 3 to 40 words
    assert measure(quality, pool, select(vague), [1, 2, 4, "e5"]) == 1.0


def test_unread_prompts_are_logged_a_completion(quality, pool, select):
    metrics = Metrics()
    vague, empty = ("text_length_filter", "make it nice"), ("exposure_filter", "")
    completions = [select(vague, empty), select(BRIGHT), "nothing", select(vague)]
    columns = {"ground_truth_filtered_data": [GOOD] * 4, "pool": [pool] * 4}
    quality(completions, log_metric=metrics, **columns)
    assert metrics == {"filtering_quality/unread_prompts": 0.75}  # 2 + 0 + 0 + 1, over 4


def test_unread_prompts_are_counted_anew_for_every_batch(quality, pool, select):
    metrics = Metrics()
    for prompt in ("make it nice", "keep brightness at least 0.5"):
        completion = select(("exposure_filter", prompt))
        quality([completion], log_metric=metrics, ground_truth_filtered_data=[GOOD], pool=[pool])
    assert metrics == {"filtering_quality/unread_prompts": 0.0}


def test_of_repeated_agents_only_the_last_prompt_runs(quality, pool, select):
    dark = ("exposure_filter", "keep brightness at most 0.5")
    assert measure(quality, pool, select(dark, BRIGHT), [1, 3, 4, "e5"]) == 1.0


def test_prompts_are_cached_by_what_they_say(quality, pool, select):
    bounds = ("0.5", "0.05", "0.5", "0.8")
    scores = [
        measure(quality, pool, select(("exposure_filter", f"keep brightness at least {bound}")), [1, 3, 4, "e5"])
        for bound in bounds
    ]
    assert scores == [1.0, 8 / 9, 1.0, 2 / 3]  # 20 / 255 is above 0.05, so all five stay; above 0.8 are 3 and e5


def test_custom_execute_gets_pool_and_last_prompts(select):
    calls = []

    def execute(pool, prompts):
        calls.append((pool, prompts))
        return iter([1, 2])

    completion = select(("a", "first"), ("b", "x"), ("a", "last"))
    assert measure(FilteringQuality(execute=execute), "my pool", completion, [2, 3]) == 0.5
    assert calls == [("my pool", {"a": "last", "b": "x"})]


def test_custom_execute_is_not_asked_without_an_agents_element(select):
    def execute(pool, prompts):
        raise AssertionError("there is nothing to execute")

    reward = FilteringQuality(execute=execute)
    scores = reward(["none", select()], ground_truth_filtered_data=[[1], [1]], pool=["p", None])
    assert scores == [0.0, None]


def test_unknown_agents_of_a_recipe_are_an_error():
    with pytest.raises(AgentError, match="unknown agent 'blurr'"):
        FilteringQuality(agents=["blurr"])


# -- combined ---------------------------------------------------------------------------------------------------------


def test_combined_is_the_weighted_sum(pool, select):
    reward = Combined(agent_weight=0.25, filtering_weight=2, agents=AGENTS)
    [score] = reward(
        [select(LONG_QUESTIONS, BRIGHT)],
        ground_truth_agents=[AGENTS],  # 2 of 3 found: F1 4/5
        ground_truth_filtered_data=[GOOD],  # F1 4/5
        pool=[pool],
    )
    assert score == pytest.approx(0.25 * 0.8 + 2 * 0.8, abs=1e-15)
    assert (reward.minimum, reward.maximum) == (0.0, 2.25)


def test_combined_weighs_both_halves_alike_by_default(select):
    reward = Combined(execute=lambda pool, prompts: [1])
    columns = {"ground_truth_filtered_data": [[1], [2]], "pool": ["p", "p"]}
    scores = reward([select(("a", "")), select(("a", ""))], ground_truth_agents=[["b"], ["a"]], **columns)
    assert scores == [0.5, 0.5]
    assert reward.maximum == 1.0


def test_combined_is_none_without_a_pool(select):
    columns = {"ground_truth_agents": [["a"]], "ground_truth_filtered_data": [[1]]}
    assert Combined()([select(("a", ""))], pool=[None], **columns) == [None]


def test_rows_of_another_task_get_none(pool, select):
    text = select(("blur_filter", "keep blur at most 0.75"))
    rows = {"ground_truth_agents": [None], "ground_truth_filtered_data": [None], "pool": [pool]}
    assert AgentSelection()([text], **rows) == [None]
    assert FilteringQuality()([text], **rows) == [None]
    assert Combined()([text], **rows) == [None]


def test_combined_logs_unread_prompts_too(pool, select):
    metrics = {}
    texts = [select(("blur_filter", "make it nice")), select(("blur_filter", "keep blur at most 0.75"))]
    rows = {"ground_truth_agents": [[]] * 2, "ground_truth_filtered_data": [[]] * 2, "pool": [pool] * 2}
    Combined()(texts, **rows, log_metric=metrics.__setitem__)
    assert metrics == {"filtering_quality/unread_prompts": 0.5}
