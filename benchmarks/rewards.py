"""How fast rewards score text, on one core: completions a second, the official VQA evaluator beside ours, and growth.

    python benchmarks/rewards.py
    python benchmarks/rewards.py --rounds 15 --only agents

Shows three things, each with its target, as medians over rounds with the smallest and the largest value:

agents   Completions a second of the rewards of agent selection, on completions as a trained model writes them
         (`typical_completions`) and on the malformed ones of tests/oracles. Target: 50,000 on the typical ones.
vqa      How many times faster `vqa_accuracy` is than the official evaluator's algorithm (`official_vqa.py`, first
         checked for equal results), both measured in every round. Targets: 10 where no answer of a question occurs in
         another one, 20 where 8 completions meet the same ten answers, as in training.
growth   What a megabyte of unclosed and nested tags costs, and the exponent with which the cost grows from 1 kB on.
         Target: 1.1 at most; 2 would be quadratic.

Everything runs in one process without threads, and times are its CPU time, so that other jobs disturb little. For
figures to quote in the README, let nothing else run all the same. Ends with status 1 if a target is missed.
"""

import inspect
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this file is called like the package that it measures

from benchmarks.official_vqa import OfficialEvaluator, official_input
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from data.prompts import format_selection
from filter_agents.registry import DEFAULT_AGENTS
from rewards import vqa_accuracy
from rewards.registry import REWARDS, build_reward, import_reward, needed_columns, reward_parameters

AGENT_REWARDS = ("agent_selection", "xml_format", "strict_xml_format")
COMPLETIONS = 4_000
QUESTIONS = 2_000
GENERATIONS = 8
SIZES = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
LEAST_RATE, LEAST_RATIO, LEAST_TRAINING_RATIO, LARGEST_EXPONENT = 50_000, 10, 20, 1.1


@dataclass(frozen=True)
class Result:
    """One line of the table: values of every round, and the target that their median has to reach, if any."""

    name: str
    values: list[float]
    form: str
    target: float | None = None
    at_most: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def passed(self) -> bool:
        if self.target is None:
            return True
        return self.median <= self.target if self.at_most else self.median >= self.target

    def line(self) -> str:
        median, low, high = (self.form.format(value) for value in (self.median, min(self.values), max(self.values)))
        sign = "at most" if self.at_most else "at least"
        target = "" if self.target is None else f"{sign} {self.form.format(self.target)}"
        outcome = "" if self.target is None else "pass" if self.passed else "**FAIL**"
        return f"| {self.name} | {median} | {low} .. {high} | {target} | {outcome} |"


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


# -- agents -----------------------------------------------------------------------------------------------------------

_SENTENCES = (
    "The report counts {n} of {total} pictures that are out of focus, well above what is usual.",
    "Brightness is even, with a median of {share}, so exposure needs no attention here.",
    "{n} items repeat an earlier one exactly, with the same question and the same answers.",
    "Annotators agree on most questions; only {n} of them have no clear majority.",
    "Several questions end in the middle of a sentence or consist of a single word.",
    "The shorter sides lie between {n} and {total} pixels, and a few pictures were enlarged from much smaller ones.",
    "Nothing stands out in the shape of the pictures: the longest is {share} times as wide as it is high.",
    "I would keep the bounds close to the healthy ones, because the data set is small.",
)
_PROMPTS = (
    "keep blur at most {share}",
    "keep brightness at least {share}, clipping at most 0.7",
    "drop exact copies",
    "keep question words between 3 and 40",
    "keep side at least {n}",
    "keep agreement at least {share}",
)


def typical_completions(count: int, rng: random.Random) -> list[str]:
    """Selections of 0 to 4 agents with a reasoning of 300 to 600 characters.

    Of 20, one holds an escaped sign, one was cut off at the maximum length, and one says something before it starts.
    """

    def fill(sentence: str) -> str:
        return sentence.format(n=rng.randint(1, 60), total=rng.randint(61, 400), share=f"0.{rng.randint(10, 99)}")

    texts = []
    for number in range(count):
        reasoning, length = "", rng.randint(300, 600)
        while len(reasoning) < length:
            reasoning += " " + fill(rng.choice(_SENTENCES))
        reasoning = reasoning.strip()[:length]
        if number % 20 == 0:
            reasoning += " So blur < 0.5."
        names = rng.sample(DEFAULT_AGENTS, rng.randint(0, 4))
        text = format_selection({name: fill(rng.choice(_PROMPTS)) for name in names}, reasoning)
        if number % 20 == 1:
            text = text[: rng.randint(len(text) // 2, len(text))]
        if number % 20 == 2:
            text = "Here is my selection:\n" + text
        texts.append(text)
    return texts


def measure_agents(rounds: int) -> list[Result]:
    rng = random.Random(0)
    typical = typical_completions(COMPLETIONS, rng)
    truths = [rng.sample(DEFAULT_AGENTS, rng.randint(0, 4)) for _ in typical]
    cases = json.loads((ROOT / "tests/oracles/agent_rewards.public.json").read_text(encoding="utf-8"))["cases"]
    malformed = [case["completion"] for case in cases]
    sets = {
        f"typical, {statistics.mean(map(len, typical)):.0f} characters": (typical, truths, LEAST_RATE),
        f"oracle cases, {statistics.mean(map(len, malformed)):.0f} characters": (
            malformed,
            [case["ground_truth_agents"] for case in cases],
            None,
        ),
    }
    results = []
    for title, (texts, agents, target) in sets.items():
        for name in AGENT_REWARDS:
            reward = build_reward(name)
            times = [seconds(lambda: reward(texts, ground_truth_agents=agents)) for _ in range(rounds)]  # noqa: B023
            rates = [len(texts) / taken for taken in times]
            results.append(Result(f"{name}: completions/s, {title}", rates, "{:,.0f}", target))
    return results


# -- vqa --------------------------------------------------------------------------------------------------------------

_SYLLABLES = "ba co di fe gu ha ji ko la mi no pu ra se ti vo wa ye zu ster ling ton ber mar".split()


def _new_word(rng: random.Random, used: set[str]) -> str:
    while True:
        word = "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4)))
        if word not in used:
            used.add(word)
            return word


def _variant(answer: str, rng: random.Random) -> str:
    """The answer as another annotator might write it."""
    return rng.choice([answer, answer, answer.capitalize(), f"a {answer}", f"{answer}.", f"the {answer}"])


def distinct_questions(count: int, rng: random.Random) -> list[tuple[list[str], list[str]]]:
    """Pairs (10 annotators' answers, 8 predictions); no word of a question occurs in another one.

    A quarter is unanimous. Otherwise 3 to 9 annotators agree, up to spelling, and the others share 1 to 4 answers.
    Predictions are the majority's answer in 6 of 10 cases, another annotator's in 2, and a new one in 2.
    """
    used: set[str] = set()
    questions = []
    for _ in range(count):
        words = [_new_word(rng, used) for _ in range(6)]
        main = " ".join(words[: rng.choice([1, 1, 1, 2, 2, 3])])
        if rng.random() < 0.25:
            answers = [main] * 10
        else:
            agreeing = rng.randint(3, 9)
            others = [words[-1], f"{words[-1]}-{words[-2]}", f"two {words[-2]}", f"{words[-3]}'s"][: rng.randint(1, 4)]
            answers = [_variant(main, rng) for _ in range(agreeing)]
            answers += [rng.choice(others) for _ in range(10 - agreeing)]
            rng.shuffle(answers)
        kinds = rng.choices(["main", "other", "new"], weights=[6, 2, 2], k=GENERATIONS)
        choice = {"main": lambda main=main: _variant(main, rng), "other": lambda answers=answers: rng.choice(answers)}
        choice["new"] = lambda: _new_word(rng, used)
        questions.append((answers, [choice[kind]() for kind in kinds]))
    return questions


def clear_caches() -> None:
    """Empties everything that `vqa_accuracy` remembers."""
    for value in vars(vqa_accuracy).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def check_equal(predictions: list[str], answers: list[list[str]], expected: list[float] | None = None) -> None:
    """Ends the program if the official algorithm and ours (or the oracle) differ."""
    official = OfficialEvaluator(*official_input(predictions, answers)).evaluate()
    ours = build_reward("vqa_accuracy")(predictions, answers=answers)
    for number, values in enumerate(zip(official, ours, expected or official, strict=True)):
        if max(values) - min(values) > 1e-12:
            sys.exit(f"error: row {number}: official, ours and oracle differ: {values}")


def measure_vqa(rounds: int) -> list[Result]:
    cases = json.loads((ROOT / "tests/oracles/vqa_accuracy.public.json").read_text(encoding="utf-8"))["cases"]
    check_equal(
        [case["prediction"] for case in cases],
        [case["answers"] for case in cases],
        [case["accuracy"] for case in cases],
    )
    questions = distinct_questions(QUESTIONS, random.Random(0))
    streams = {
        "distinct answers, one completion each": (
            [predictions[0] for _, predictions in questions],
            [answers for answers, _ in questions],
            LEAST_RATIO,
        ),
        f"training, {GENERATIONS} completions meet the same answers": (
            [prediction for _, predictions in questions for prediction in predictions],
            [list(answers) for answers, predictions in questions for _ in predictions],
            LEAST_TRAINING_RATIO,
        ),
    }
    results = []
    for title, (predictions, answers, target) in streams.items():
        check_equal(predictions, answers)
        reward = build_reward("vqa_accuracy")
        official_times, our_times = [], []
        for _ in range(rounds):
            evaluator = OfficialEvaluator(*official_input(predictions, answers))
            clear_caches()
            official_times.append(seconds(evaluator.evaluate))
            our_times.append(seconds(lambda: reward(predictions, answers=answers)))  # noqa: B023
        ratios = [theirs / ours for theirs, ours in zip(official_times, our_times, strict=True)]
        for name, times in (("official algorithm", official_times), ("vqa_accuracy", our_times)):
            rates = [len(predictions) / taken for taken in times]
            results.append(Result(f"{name}: answers/s, {title}", rates, "{:,.0f}"))
        results.append(Result(f"vqa_accuracy over official: times as fast, {title}", ratios, "{:.1f}", target))
    return results


# -- growth -----------------------------------------------------------------------------------------------------------

_HEAD = "<selection><reasoning>r</reasoning><agents>"
SHAPES = {  # name: what comes once, what is repeated, what comes last
    "unclosed selections": ("", "<selection>", ""),
    "unclosed agents": ("<agents>", "<agent>", ""),
    "unclosed agents in a list": ("<agents>", "<agent>", "</agents>"),
    "unclosed names": ("<agents>", "<agent><name></agent>", "</agents>"),
    "closing tags": ("", "</agents></agent></name>", "<agents>"),
    "nested agents": (_HEAD, "<agent><name>a</name><prompt>p</prompt>", "</agents></selection>"),
    "many agents": (_HEAD, "<agent><name>blur_filter</name><prompt>p</prompt></agent>", "</agents></selection>"),
    "unclosed many agents": (_HEAD, "<agent><name>blur_filter</name><prompt>p</prompt></agent>", ""),
    "escapes": ("<selection><reasoning>", "&lt;", "</reasoning><agents></agents></selection>"),
    "unclosed answers": ("", "<answer>", ""),
    "answers closed only": ("", "</answer>", ""),
    "words and marks": ("", "The 2,000 cats, or two.. ", ""),
}
_ROW = {"ground_truth_agents": ["blur_filter"], "answers": ["yes"] * 9 + ["no, it is not"]}
_ROW |= {"vqa_correct": 1, "vqa_acc_score": 0.9, "vqa_gt_prob": 0.5, "vqa_rel_score": 1.0}
_ROW |= {"beam_score": 0.1, "logprob_score": -2.0}


def text_rewards() -> list[str]:
    """Built-in rewards that read texts only and need no parameters."""
    names = []
    for name in REWARDS:
        reward = import_reward(name)
        defaults = [parameter.default for parameter in reward_parameters(reward).values()]
        if getattr(reward, "text_only", False) and inspect.Parameter.empty not in defaults:
            names.append(name)
    return names


def exponent(sizes: tuple[int, ...], times: list[float]) -> float:
    """Slope of the straight line through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(taken) for taken in times]
    return statistics.linear_regression(x, y).slope


def measure_growth(rounds: int) -> list[Result]:
    """For each reward, the slowest shape and the one that grows fastest; of each size the quickest of three calls."""
    results = []
    for name in text_rewards():
        reward = build_reward(name)
        columns = {column: [_ROW[column]] for column in needed_columns(reward)}
        cost: dict[str, list[float]] = {}
        growth: dict[str, list[float]] = {}
        for shape, (start, filling, end) in SHAPES.items():
            texts = [start + filling * (size // len(filling)) + end for size in SIZES]
            for _ in range(rounds):
                times = []
                for text in texts:
                    calls = max(1, 50_000 // len(text))
                    batch = range(calls)
                    trials = [seconds(lambda: [reward([text], **columns) for _ in batch]) for _ in range(3)]  # noqa: B023
                    times.append(min(trials) / calls)
                cost.setdefault(shape, []).append(times[-1] * 1e6 / len(texts[-1]))
                growth.setdefault(shape, []).append(exponent(SIZES, times))
        slowest = max(cost, key=lambda shape: statistics.median(cost[shape]))
        steepest = max(growth, key=lambda shape: statistics.median(growth[shape]))
        results.append(Result(f"{name}: seconds a megabyte, {slowest}", cost[slowest], "{:.4f}"))
        title = f"{name}: exponent of growth, {steepest}"
        results.append(Result(title, growth[steepest], "{:.2f}", LARGEST_EXPONENT, at_most=True))
    return results


PARTS = {"agents": measure_agents, "vqa": measure_vqa, "growth": measure_growth}
NOTES = {
    "vqa": "vqa_accuracy remembers normalised answers of up to 128 characters, and lists of annotators' answers that "
    "it has prepared. Both memories start empty in every round, so what is reused was first met in the same round.",
    "growth": f"Of {len(SHAPES)} shapes of hostile text, the slowest and the steepest one for each reward.",
}


@dataclass(kw_only=True)
class RewardBenchmark:
    """What is measured, how often."""

    rounds: int = option("how often everything is measured", 7, within=AT_LEAST_1)
    only: tuple[str, ...] = option("some parts", tuple(PARTS), choices=tuple(PARTS))


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(RewardBenchmark, argv)
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"Python {platform.python_version()}, {platform.machine()}, one process, {arguments.rounds} rounds{load}\n")
    print("| measure | median | least .. most | target | |\n|---|---|---|---|---|")
    missed = 0
    for part in arguments.only:
        for result in PARTS[part](arguments.rounds):
            print(result.line(), flush=True)
            missed += not result.passed
    print("\n" + "\n".join(NOTES[part] for part in arguments.only if part in NOTES))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
