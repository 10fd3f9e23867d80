"""Candidate pools: the earlier system's samplers, and what they got wrong."""

import itertools
import json
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from command_lines import with_options
from PIL import Image
from places import ORACLES

from data.candidates.pools import load_pools
from data.factor_labels.text_encoder import BUNDLED_MINILM
from data.io.records import write_jsonl
from data.vqa import VqaRecord
from data.vqa import main as make_vqa
from rollouts import embeddings, pools
from rollouts.pools import (
    DEFAULT_MIX,
    IMAGE,
    IMAGE_TEXT,
    RANDOM,
    SAMPLERS,
    TEXT,
    Sampler,
    excluded_rows,
    main,
    mix_counts,
    mix_rankings,
    parse_mix,
    random_pools,
    sample_anchors,
)
from rollouts.retrieval.nearest import ExactSearch

CASES = json.loads((ORACLES / "samplers.public.json").read_text())["cases"]
WITH_FEATURES = [case for case in CASES if "mix" in case]


def name(case: dict) -> str:
    return f"case {case['id']}"


# -- the earlier system's pools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=name)
def test_random_pools_are_those_of_the_oracle(case):
    """Its random sampler draws its anchors with seed 42 always, the others with the seed that they are given."""
    total, count = case["train_len"], case["anchor_sample_num"]
    anchors = sample_anchors(total, count, 42)
    assert anchors == case["anchors_rand_sampler"]
    assert sample_anchors(total, count, case["seed"]) == case.get("anchors", anchors)
    drawn = random_pools(total, case["candidate_num"], [[row] for row in anchors], case["seed"])
    assert drawn.tolist() == case["rand"]


def similar(case: dict, kind: str) -> np.ndarray:
    vectors = np.load(ORACLES / "samplers.public.npz")[f"c{case['id']}_{kind}"]
    anchors = case["anchors"]
    return ExactSearch(vectors).nearest(vectors[anchors], case["candidate_num"], [[row] for row in anchors])


@pytest.mark.parametrize("case", WITH_FEATURES, ids=name)
def test_similar_pools_are_those_of_the_oracle(case):
    assert similar(case, "img").tolist() == case["img_sim"]
    assert similar(case, "text").tolist() == case["text_sim"]


@pytest.mark.parametrize("case", WITH_FEATURES, ids=name)
def test_mixed_pools_are_those_of_the_oracle_without_repetitions_and_filled_up(case):
    counts = mix_counts(parse_mix(DEFAULT_MIX), case["candidate_num"])
    named = {"RandSampler": RANDOM, "TextSimSampler": TEXT, "ImgSimSampler": IMAGE}
    assert counts == {named[old]: count for old, count in case["mix_counts"].items()}
    drawn = random_pools(case["train_len"], counts[RANDOM], [[row] for row in case["anchors"]], case["seed"])
    taken = [counts[RANDOM], counts[IMAGE], counts[TEXT]]
    shortest = case["candidate_num"]
    for rankings, theirs in zip(
        zip(drawn, similar(case, "img"), similar(case, "text"), strict=True), case["mix"], strict=True
    ):
        ours, distinct = mix_rankings(rankings, taken), list(dict.fromkeys(theirs))
        assert ours[: len(distinct)] == distinct
        assert len(ours) == len(set(ours)) == case["candidate_num"]
        shortest = min(shortest, len(distinct))
    if case["candidate_num"] == 64:
        assert shortest < 64  # the oracle does hold pools that are too short


# -- parts ------------------------------------------------------------------------------------------------------------


def test_random_pools_never_hold_what_is_excluded():
    excluded = [[], [3], [0, 1, 2], [19]] * 50
    drawn = random_pools(20, 12, excluded, seed=1)
    assert drawn.shape == (200, 12)
    for pool, rows in zip(drawn.tolist(), excluded, strict=True):
        assert len(set(pool)) == 12
        assert set(pool) <= set(range(20)) - set(rows)
    counts = np.bincount(drawn.ravel(), minlength=20)
    assert counts[3:19].min() > 90  # of 200 * 12 / 20 = 120 expected
    np.testing.assert_array_equal(drawn, random_pools(20, 12, excluded, seed=1))
    assert (drawn != random_pools(20, 12, excluded, seed=2)).any()


def test_random_pools_of_nearly_all_rows_do_not_take_for_ever(monkeypatch):
    """Redrawing a pool of 4,999 out of 5,000 until it lacks one row takes 5,000 draws."""
    drawn = random_pools(5000, 4999, [[7], [0]], seed=0)
    assert [sorted(set(range(5000)) - set(pool)) for pool in drawn.tolist()] == [[7], [0]]
    assert (np.diff(drawn[0]) < 0).any()  # in random order
    monkeypatch.setattr(pools, "MAX_REDRAWN", 10**12)
    small = random_pools(40, 38, [[7, 8]], seed=0)  # by redrawing, still
    assert set(small[0].tolist()) == set(range(40)) - {7, 8}


def test_anchors_are_checked():
    assert sorted(sample_anchors(3, 3, 0)) == [0, 1, 2]
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"number of queries: expected 1 to 3, found {count}"):
            sample_anchors(3, count)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("random=.5,text=.5", "expected sampler=share, each sampler of random, .* once, found 'text=.5'"),
        ("random=.5,random=.5", "found 'random=.5'"),
        ("random", "found 'random'"),
        ("random=half", "share of random: expected a number, found 'half'"),
        ("random=1.5,text_similarity=-.5", "share of text_similarity: expected a number above 0, found -.5"),
        ("random=nan", "share of random: expected a number above 0, found nan"),
        ("random=.5,text_similarity=.4", "expected shares that add up to 1, found 0.9"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_mix(text)


def test_counts_of_a_mix_add_up():
    assert mix_counts(parse_mix("random=.29,image_similarity=.71"), 100) == {"random": 29, "image_similarity": 71}
    assert mix_counts(parse_mix("text_similarity=1"), 7) == {"text_similarity": 7}
    for size in range(1, 70):
        assert sum(mix_counts(parse_mix(DEFAULT_MIX), size).values()) == size


def test_a_mix_of_any_overlap_has_its_size():
    rng = random.Random(0)
    for _ in range(500):
        total, size = rng.randint(6, 30), rng.randint(3, 6)
        first = rng.randint(0, size)
        counts = [first, rng.randint(0, size - first)]
        counts.append(size - sum(counts))
        rankings = [np.array(rng.sample(range(total), length)) for length in (counts[0], size, size)]
        pool = mix_rankings(rankings, counts)
        assert len(pool) == len(set(pool)) == size
        plain = [row for ranking, count in zip(rankings, counts, strict=True) for row in ranking[:count].tolist()]
        distinct = list(dict.fromkeys(plain))
        assert pool[: len(distinct)] == distinct
        further = set(itertools.chain(rankings[1].tolist(), rankings[2].tolist()))
        assert set(pool[len(distinct) :]) <= further


def test_a_ranking_that_cannot_fill_the_pool_is_an_error():
    assert mix_rankings([np.array([1]), np.array([1, 2])], [1, 1]) == [1, 2]
    with pytest.raises(ValueError, match="a ranking of 2 rows: 1 too few to fill the pool"):
        mix_rankings([np.array([1, 2]), np.array([1, 2])], [2, 1])


def record(number, image: str = "a.png", question: str = "?") -> VqaRecord:
    return VqaRecord(id=number, question=question, images=image.split(), answers=["x"])


def test_the_query_is_excluded_by_its_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for shade, name in enumerate(("a.png", "b.png", "c.png", "z.png")):
        Image.new("L", (8, 8), shade).save(name)
    examples = [record(1, "a.png"), record("1", "b.png"), record(2, "a.png c.png"), record(3, "c.png")]
    queries = [record("1", "z.png"), record(3, "c.png"), record(9, "a.png")]
    assert excluded_rows(queries, examples) == [[1], [3], []]
    assert excluded_rows(queries, examples, same_image=True) == [[1], [2, 3], [0, 2]]


@pytest.mark.parametrize("sampler", [RANDOM, TEXT, IMAGE_TEXT, "mix"])
def test_identical_embeddings_do_not_bring_the_query_into_its_pool(sampler):
    examples = [record(number) for number in range(30)]
    alike = np.tile(np.array([0.6, 0.8], dtype=np.float32), (30, 1))
    made = Sampler(30, excluded_rows(examples, examples), {"text": (alike, alike), "image": (alike, alike)})
    for row, pool in enumerate(made.pools(sampler, 12).tolist()):
        assert row not in pool
        assert len(set(pool)) == 12
    if sampler in (TEXT, IMAGE_TEXT):  # ties in the order of the rows
        assert made.pools(sampler, 12)[3].tolist() == [0, 1, 2, *range(4, 13)]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vqa(tmp_path_factory) -> Path:
    """Folder of easy-VQA records, 150 a split; many share a question, some an image."""
    folder = tmp_path_factory.mktemp("vqa")
    make_vqa(["--source", "easy_vqa", "--output_dir", str(folder), "--limit", "150"])
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def load_once():
    """`load_encoder` that keeps what it has loaded."""
    return lru_cache(embeddings.load_encoder)


@pytest.fixture
def command(vqa, cache, tiny_model, load_once, tmp_path, capsys, monkeypatch):
    """Function: sampler and options -> the rows written, or the message of the error that it ended with."""
    monkeypatch.setattr(embeddings, "load_encoder", load_once)

    def run(sampler: str, *options: str, source: Path = vqa) -> list[dict] | str:
        arguments = ["--dataset_name", str(source), "--sampler", sampler, "--cache_dir", str(cache), "--device", "cpu"]
        arguments += ["--text_encoder", BUNDLED_MINILM, "--image_encoder", str(tiny_model)]
        capsys.readouterr()
        try:
            main(with_options([*arguments, "--output", str(tmp_path / "pools.jsonl")], options))
        except SystemExit as end:
            assert not (tmp_path / "pools.jsonl").exists()
            return end.code if isinstance(end.code, str) else capsys.readouterr().err
        return [json.loads(line) for line in (tmp_path / "pools.jsonl").read_text().splitlines()]

    return run


def records_by_id(vqa: Path, split: str = "train") -> dict:
    return {row["id"]: row for row in map(json.loads, (vqa / f"{split}.jsonl").read_text().splitlines())}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_pools_that_load(sampler, command, vqa, tmp_path):
    rows = command(sampler, "--num_queries", "12", "--pool_size", "20", "--seed", "5")
    examples = records_by_id(vqa)
    loaded = load_pools(tmp_path / "pools.jsonl", set(examples))
    drawn = sample_anchors(150, 12, 5)
    assert list(loaded) == [list(examples)[row] for row in drawn]
    for query, pool in loaded.items():
        assert query not in pool
        assert len(pool) == len(set(pool)) == 20
    expected = "mix random=0.5,text_similarity=0.25,image_similarity=0.25" if sampler == "mix" else sampler
    assert {row["sampler"] for row in rows} == {expected}
    assert command(sampler, "--num_queries", "12", "--pool_size", "20", "--seed", "5") == rows


def test_text_similarity_brings_equal_questions_first(command, vqa):
    rows = command(TEXT, "--num_queries", "15", "--pool_size", "10")
    examples = records_by_id(vqa)
    repeated = 0
    for row in rows:
        question = examples[row["query_id"]]["question"]
        same = [number for number, example in examples.items() if example["question"] == question]
        same.remove(row["query_id"])
        assert row["pool"][: len(same)] == same[:10]  # in the order of the file
        repeated += bool(same)
    assert repeated > 3


def test_queries_of_another_split_and_equal_images(command, vqa):
    queries = records_by_id(vqa, "validation")
    rows = command(IMAGE, "--queries", str(vqa), "--pool_size", "5")
    assert [row["query_id"] for row in rows] == list(queries)
    examples = records_by_id(vqa)
    shared = {row["image"] for row in examples.values()}
    several = [row for row in command(IMAGE, "--pool_size", "5") if _image(examples, row["query_id"], row["pool"])]
    assert several  # an image's other questions come first
    assert len(shared) < len(examples)
    apart = command(IMAGE, "--pool_size", "5", "--exclude_same_image")
    assert [row for row in apart if _image(examples, row["query_id"], row["pool"])] == []
    assert {len(row["pool"]) for row in apart} == {5}


def _image(examples: dict, query, pool: list) -> bool:
    return examples[query]["image"] in {examples[number]["image"] for number in pool}


def test_the_weight_leads_from_images_to_texts(command):
    options = ("--num_queries", "10", "--pool_size", "8")
    both = [command(IMAGE_TEXT, *options, "--text_weight", weight) for weight in ("0", "0.5", "1")]
    pure = [command(IMAGE, *options), command(TEXT, *options)]
    assert [row["pool"] for row in both[0]] == [row["pool"] for row in pure[0]]
    assert [row["pool"] for row in both[2]] == [row["pool"] for row in pure[1]]
    assert [row["pool"] for row in both[1]] not in ([row["pool"] for row in pool] for pool in pure)


def test_examples_may_be_compared_with_their_answers(command):
    options = ("--num_queries", "10", "--pool_size", "8")
    plain, answered = command(TEXT, *options), command(TEXT, *options, "--example_text", "question_answer")
    assert [row["query_id"] for row in plain] == [row["query_id"] for row in answered]
    assert [row["pool"] for row in plain] != [row["pool"] for row in answered]


def test_a_pool_may_hold_all_other_examples_but_no_more(command, vqa):
    for sampler in (RANDOM, TEXT):
        rows = command(sampler, "--num_queries", "2", "--pool_size", "149")
        assert {tuple(sorted([*row["pool"], row["query_id"]])) for row in rows} == {tuple(sorted(records_by_id(vqa)))}


def test_a_larger_pool_than_there_are_candidates_is_an_error(command):
    message = command(RANDOM, "--num_queries", "2", "--pool_size", "150")
    first = "error: query 'train-"
    assert message.startswith(first)
    assert message.count("expected 150 candidates, found 149 (150 examples, 1 of them excluded)") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_queries", "151"], "error: number of queries: expected 1 to 150, found 151"),
        (["--pool_size", "0"], "--pool_size: expected at least 1, found 0"),
        (["--text_weight", "1.5"], "--text_weight: expected a number from 0 to 1, found 1.5"),
        (["--mix", "random=.5"], "--mix: expected shares that add up to 1, found 0.5 in 'random=.5'"),
        (["--queries", "none.jsonl"], "error: none.jsonl: no such file or folder"),
    ],
)
def test_bad_options_are_named(command, options, message):
    assert message in command("mix", *options)


def test_an_encoder_that_is_missing_is_asked_for(vqa, capsys):
    for sampler, missing in ((TEXT, "text"), (IMAGE, "image"), ("mix", "image")):
        with pytest.raises(SystemExit):
            main(["--dataset_name", str(vqa), "--sampler", sampler, "--output", "never.jsonl"])
        assert f"--sampler {sampler} needs --{missing}_encoder" in capsys.readouterr().err


def test_problems_of_the_data_come_before_any_encoder_is_loaded(command, tmp_path):
    row = {"id": 1, "question": "?", "answers": ["a"], "image": "none.png"}
    write_jsonl(tmp_path / "d.jsonl", [row, {**row, "id": 2}, {**row, "id": 1}])
    options = ("--image_encoder", "never/loaded", "--pool_size", "1")
    message = command(IMAGE, *options, source=tmp_path / "d.jsonl")
    assert message == f"error: {tmp_path}/d.jsonl, record 3: field 'id': 1 is also record 1's"
    write_jsonl(tmp_path / "d.jsonl", [row, {**row, "id": 2}])
    message = command(IMAGE, *options, source=tmp_path / "d.jsonl")
    assert message.startswith("error: 1 of 1 image cannot be read:\n")
    assert f"{tmp_path}/d.jsonl, record 1: field 'images': {tmp_path}/none.png: no such" in message
