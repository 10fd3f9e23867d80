"""Text rewards read a megabyte of hostile text in time that grows with its length, not with its square.

Nothing is timed here (`benchmarks/rewards.py` does that): quadratic work on a megabyte takes minutes, and the limit
ends it.
"""

import inspect

import pytest

from rewards.registry import REWARDS, build_reward, import_reward, needed_columns, reward_parameters

MEGABYTE = 1_000_000
COLUMNS = {
    "ground_truth_agents": ["blur_filter"],
    "ground_truth_filtered_data": [1],
    "answers": ["yes"] * 9 + ["no, it is not."],
    "vqa_correct": 1,
    "vqa_acc_score": 0.9,
    "vqa_gt_prob": 0.5,
    "vqa_rel_score": 1.0,
    "beam_score": 0.1,
    "logprob_score": -2.0,
    "better": "A",
}
HEAD = "<selection><reasoning>r</reasoning><agents>"
REPEATED = {  # name: what comes once, what fills the megabyte, what comes last
    "open selections": ("", "<selection>", ""),
    "open reasonings": ("<selection>", "<reasoning>", ""),
    "open agents": ("", "<agents>", ""),
    "open agent": ("<agents>", "<agent>", ""),
    "open agent in a closed list": ("<agents>", "<agent>", "</agents>"),
    "open names": ("<agents>", "<agent><name>", "</agents>"),
    "agents of open names": ("<agents>", "<agent><name></agent>", "</agents>"),
    "agents of open prompts": ("<agents>", "<agent><name>a</name><prompt></agent>", "</agents>"),
    "closed before opened": ("", "</agents></agent></name>", "<agents>"),
    "many agents": (HEAD, "<agent><name>blur_filter</name><prompt>p</prompt></agent>", "</agents></selection>"),
    "many agents, then nothing": (HEAD, "<agent><name>blur_filter</name><prompt>p</prompt></agent>", ""),
    "nested agents": (HEAD, "<agent><name>a</name><prompt>p</prompt>", "</agents></selection>"),
    "references": ("<selection><reasoning>", "&amp;", "</reasoning><agents></agents></selection>"),
    "bare signs": ("<selection><reasoning>", "<", ""),
    "white space": (HEAD, " ", "</agents></selection>"),
    "white space in a list": (HEAD, "\n<agent> ", "</agents></selection>"),
    "open answers": ("", "<answer>", ""),
    "closed answers": ("", "</answer>", ""),
    "pairs of answers": ("", "<answer></answer>", "</answer>"),
    "open verdicts": ("", "<verdict>", ""),
    "verdicts": ("", "<verdict>A</verdict>", ""),
    "words": ("", "the two cats, ", ""),
    "periods": ("", ".", ""),
    "numbers": ("", "1,1", ""),
    "marks": ("", "?!;/", ""),
}


def is_read_as_text(name: str) -> bool:
    reward = import_reward(name)
    free = all(value.default is not inspect.Parameter.empty for value in reward_parameters(reward).values())
    return free and reward.text_only


def hostile_text(start: str, filling: str, end: str) -> str:
    return start + filling * (MEGABYTE // len(filling)) + end


@pytest.mark.timeout(10)
@pytest.mark.parametrize("shape", REPEATED.values(), ids=REPEATED)
@pytest.mark.parametrize("name", [name for name in REWARDS if is_read_as_text(name)])
def test_a_megabyte_is_scored(name, shape):
    reward = build_reward(name)
    columns = {column: [COLUMNS[column]] for column in needed_columns(reward)}
    [score] = reward([hostile_text(*shape)], **columns)
    assert reward.failures == []
    assert reward.function.minimum <= score <= reward.function.maximum


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["filtering_quality", "combined"])
def test_a_megabyte_of_agents_and_prompts_is_run(name, pool):
    reward = build_reward({"name": name, "agents": ["exposure_filter"]})
    long_prompt = (
        f"<agent><name>exposure_filter</name><prompt>{'keep brightness at least 0.5 ' * 20_000}</prompt></agent>"
    )
    many = "<agent><name>exposure_filter</name><prompt>keep brightness at least 0.5</prompt></agent>" * 6_000
    completion = f"<agents>{long_prompt}{many}</agents>"
    columns = {"ground_truth_agents": ["exposure_filter"], "ground_truth_filtered_data": [[1, 3, 4, "e5"]]}
    assert len(completion) > MEGABYTE
    assert reward([completion], pool=[pool], **columns) == [1.0]
