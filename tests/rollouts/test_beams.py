"""Beam search over examples: the largest gain wins, as in brute force with the plain model; killing loses nothing."""

import itertools
import json
import random
import time
from pathlib import Path

import pytest
import vlm_cases as cases
from command_lines import with_options
from places import KILLS

from data.candidate_groups import load_groups
from data.io.records import write_jsonl
from data.prompts import IN_CONTEXT_SYSTEM_PROMPT
from data.vqa import common_answer
from rewards.vqa_accuracy import vqa_accuracy
from rollouts import beams
from rollouts.beams import Query, Scorer, Value, beam_group, search
from rollouts.frozen_vlm.engine import InContextVLM
from rollouts.frozen_vlm.requests import InContextRequest, first_answer

RECORDS = cases.records()
WORKER = KILLS / "rollout_kill_worker.py"


class TableScorer:
    """Values from a table of (places in the order of selection) -> score; unlisted ones are 0."""

    name = "info_gain"

    def __init__(self, table: dict[tuple, float]):
        self.table = table

    def __call__(self, sequences):
        return [Value(self.table.get(places, 0.0)) for _, places in sequences]


def _query(pool_size: int = 4) -> Query:
    return Query("q", RECORDS[0], [f"e{n}" for n in range(pool_size)], RECORDS[1 : 1 + pool_size])


def _found(table: dict, beam_size: int, shots: int, pool_size: int = 3) -> list:
    (found,) = search([_query(pool_size)], TableScorer(table), beam_size, shots)
    return found


def test_the_largest_gain_wins_though_all_are_negative():
    table = {(): 0.9, (0,): 0.2, (1,): 0.5, (2,): 0.1}
    assert [beam.places for beam in _found(table, 2, 1)] == [(1,), (0,)]
    assert [beam.score for beam in _found(table, 2, 1)] == pytest.approx([-0.4, -0.7])


def test_beams_are_compared_by_the_gain_over_no_examples_not_by_the_last_step():
    table = {(): 0.1, (0,): 0.6, (1,): 0.2, (0, 1): 0.7, (0, 2): 0.65, (1, 0): 0.5, (1, 2): 0.1}
    found = _found(table, 2, 2)
    # The last step of (1, 0) gains .3, that of (0, 1) only .1.
    assert [beam.places for beam in found] == [(0, 1), (0, 2)]
    assert found[0].score == pytest.approx(0.6)
    assert found[0].step_scores == pytest.approx([0.5, 0.1])
    assert sum(found[1].step_scores) == pytest.approx(found[1].score)


def test_every_beam_is_continued_with_every_candidate():
    table = {(2,): 0.1, (1,): 0.2, (2, 0): 0.9}
    assert _found(table, 2, 2)[0].places == (2, 0)
    assert _found(table, 1, 2)[0].places == (1, 0)  # a beam of one has lost it


def test_nothing_is_shown_twice_and_ties_go_by_place_in_the_pool():
    found = _found({}, 100, 3)
    assert [beam.places for beam in found] == list(itertools.permutations(range(3)))


def test_several_queries_at_once_are_as_each_alone():
    scorer = Scorer(InContextVLM(*cases.build_qwen2()), "info_gain")
    queries = [
        Query(n, RECORDS[n], [str(m) for m in range(8) if m != n], [RECORDS[m] for m in range(8) if m != n])
        for n in (0, 3)
    ]
    together = search(queries, scorer, 3, 2)
    for query, found in zip(queries, together, strict=True):
        (alone,) = search([query], scorer, 3, 2)
        assert [beam.places for beam in found] == [beam.places for beam in alone]
        assert [beam.score for beam in found] == pytest.approx([beam.score for beam in alone], abs=1e-6)


@pytest.mark.parametrize("construct_order", ["left", "right"])
@pytest.mark.parametrize("style", ["chat", "single_turn"])
def test_gains_equal_brute_force_with_the_plain_model(construct_order, style):
    model, processor = cases.build_qwen2()

    def probability(places: tuple) -> float:
        shown = [query.pool[place] for place in places]
        shown = shown[::-1] if construct_order == "left" else shown
        request = InContextRequest(query.record, tuple(shown), common_answer(query.record))
        return 2.718281828459045 ** cases.plain_log_prob(model, processor, request, style, IN_CONTEXT_SYSTEM_PROMPT)

    query = _query()
    scorer = Scorer(InContextVLM(model, processor, prompt_style=style), "info_gain", construct_order)
    (found,) = search([query], scorer, 100, 2)
    expected = {places: probability(places) - probability(()) for places in itertools.permutations(range(4), 2)}
    assert {beam.places: beam.score for beam in found} == pytest.approx(expected, abs=1e-5, rel=1e-3)
    assert [beam.places for beam in found] == sorted(expected, key=lambda places: -expected[places])
    row = beam_group(query, found[:5], scorer)
    assert row["candidates"][0]["pointer"] == [f"e{place}" for place in found[0].places]


def test_the_accuracy_scorer_scores_what_the_plain_model_writes():
    model, processor = cases.build_qwen2()
    record = RECORDS[0]
    query = _query()
    texts = {}
    for place in range(4):
        request = InContextRequest(record, (query.pool[place],))
        texts[place] = cases.plain_answer(
            model, processor, request, "chat", IN_CONTEXT_SYSTEM_PROMPT, max_new_tokens=2
        )
    # The answer of the third becomes the right one.
    answers = [first_answer(texts[2])] * 4 + [common_answer(record)] * 6
    query = Query("q", record.model_copy(update={"answers": answers}), query.pool_ids, query.pool)
    scorer = Scorer(InContextVLM(model, processor), "accuracy", generation={"max_new_tokens": 2})
    (found,) = search([query], scorer, 4, 1)
    row = beam_group(query, found, scorer)
    for beam, candidate in zip(found, row["candidates"], strict=True):
        text = texts[beam.places[0]]
        accuracy = vqa_accuracy(first_answer(text), answers)
        assert candidate["vqa_raw_generation"] == text
        assert candidate["vqa_acc_score"] == accuracy
        assert candidate["beam_score"] == accuracy - row["zero_shot_score"]
    assert row["candidates"][0]["vqa_acc_score"] > 0
    ranks = [(beam.values[-1].score, beam.values[-1].tie) for beam in found]
    assert ranks == sorted(ranks, reverse=True)


# The command


def _write_data(folder: Path, queries: int, pool_size: int) -> Path:
    """Records with their pictures, and pools of the first of them."""
    rng = random.Random(1)
    rows = []
    for number in range(24):
        colour = cases.COLOURS[number % 8]
        cases.picture(colour, (64, 32 + 8 * (number % 5))).save(folder / f"{number}.png")
        question = f"what color is shape {number}?"
        rows.append({"id": f"r{number}", "image": f"{number}.png", "question": question, "answers": [colour] * 10})
    write_jsonl(folder / "train.jsonl", rows)
    ids = [row["id"] for row in rows]
    pools = [
        {"query_id": item, "pool": rng.sample([other for other in ids if other != item], pool_size)}
        for item in ids[:queries]
    ]
    write_jsonl(folder / "pools.jsonl", pools)
    return folder


@pytest.fixture(scope="module")
def beam_data(tmp_path_factory) -> Path:
    """Ten queries with pools of six."""
    return _write_data(tmp_path_factory.mktemp("beams"), 10, 6)


def _arguments(beam_data: Path, tiny_model: Path, output: Path, *more: str) -> list[str]:
    files = ["--pools", str(beam_data / "pools.jsonl"), "--dataset_name", str(beam_data), "--model", str(tiny_model)]
    options = ["--beam_size", "3", "--shots", "2", "--chunk_size", "2", "--device", "cpu"]
    return with_options([*files, *options, "--output", output], more)


@pytest.fixture(scope="module")
def undisturbed(beam_data, tiny_model, tmp_path_factory) -> tuple[Path, float]:
    """The file, and how long it took to make."""
    output = tmp_path_factory.mktemp("undisturbed") / "beams.jsonl"
    start = time.monotonic()
    beams.main(_arguments(beam_data, tiny_model, output))
    return output, time.monotonic() - start


def test_the_file_is_one_of_candidate_groups(undisturbed, beam_data):
    groups = load_groups(undisturbed[0], example_ids={f"r{number}" for number in range(24)})
    assert [group.id for group in groups] == [f"r{number}" for number in range(10)]
    for group in groups:
        assert group.shots == 2
        assert [candidate.beam_rank for candidate in group.candidates] == [0, 1, 2]
        scores = [candidate.beam_score for candidate in group.candidates]
        assert scores == sorted(scores, reverse=True)
        assert all(sum(c.step_scores) == pytest.approx(c.beam_score, abs=1e-12) for c in group.candidates)
        assert group.question.startswith("what color")
        assert len(group.answers) == 10


def _kill(run_warm, kills: int, seconds: float, expected: Path, arguments: list[str]) -> None:
    """Kills runs within so many seconds of their start; the file of the last equals the undisturbed one."""
    seed = 3  # the first moments are early ones: a run that is not killed leaves nothing to do for the others
    finished = run_warm(WORKER, kills, seed, seconds, "rollouts.beams", *arguments, timeout=500)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout.rsplit("killed ", 1)[1]) >= kills // 2
    output = Path(arguments[arguments.index("--output") + 1])
    assert output.read_bytes() == expected.read_bytes()


def test_killed_a_few_times_the_file_is_the_same(undisturbed, beam_data, tiny_model, tmp_path, run_warm):
    expected, seconds = undisturbed
    _kill(run_warm, 4, seconds, expected, _arguments(beam_data, tiny_model, tmp_path / "beams.jsonl"))


@pytest.mark.slow
def test_killed_twenty_times_the_file_is_the_same(tiny_model, tmp_path, run_warm):
    data = _write_data(tmp_path, 24, 20)
    start = time.monotonic()
    beams.main(_arguments(data, tiny_model, tmp_path / "undisturbed.jsonl"))
    seconds = time.monotonic() - start
    arguments = _arguments(data, tiny_model, tmp_path / "killed.jsonl")
    _kill(
        run_warm, 20, seconds / 6, tmp_path / "undisturbed.jsonl", arguments
    )  # short enough that all fall into the work


def test_two_processes_make_the_same_file_as_one(undisturbed, beam_data, tiny_model, tmp_path, run_warm):
    output = tmp_path / "beams.jsonl"
    finished = run_warm("-m", "rollouts.beams", *_arguments(beam_data, tiny_model, output), processes=2)
    assert finished.returncode == 0, finished.stderr
    assert output.read_bytes() == undisturbed[0].read_bytes()
    shards = sorted((tmp_path / "beams.jsonl.parts").glob("shard-*.jsonl"))
    assert [len(shard.read_text().splitlines()) for shard in shards] == [6, 4]


def test_a_started_work_folder_refuses_other_options(undisturbed, beam_data, tiny_model):
    with pytest.raises(SystemExit, match=r"field 'beam_size': the rows there were made with 3, now it is 4"):
        beams.main(with_options(_arguments(beam_data, tiny_model, undisturbed[0]), ["--beam_size", "4"]))


def _rewritten(path: Path, rows: list[dict]) -> Path:
    write_jsonl(path, rows)
    return path


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"query_id": "nobody"}, "query 'nobody': field 'query_id': expected the id of a query"),
        ({"pool": ["r1"]}, "query 'r0': field 'pool': expected at least 2 ids, found 1"),
        ({"pool": ["r0", "r1", "r2"]}, "query 'r0': field 'pool': expected other examples than the query"),
        ({"pool": ["r1", "r99"]}, "field 'pool': expected ids of the examples' data set, found 'r99'"),
        ({"pool": ["r1", "r1"]}, "field 'pool': duplicate id 'r1'"),
    ],
)
def test_bad_pools_are_named_before_the_model_is_loaded(beam_data, tmp_path, change, problem):
    first, *others = [json.loads(line) for line in (beam_data / "pools.jsonl").read_text().splitlines()]
    pools = _rewritten(tmp_path / "pools.jsonl", [{**first, **change}, *others])
    arguments = _arguments(beam_data, Path("no-such-model"), tmp_path / "out.jsonl", "--pools", str(pools))
    with pytest.raises(SystemExit, match=problem):
        beams.main(arguments)
