"""Candidates: right rows, once each, whatever kills or divides the run."""

import json

import pytest
import torch
from command_lines import with_options

from data.candidate_groups import load_groups, write_groups
from data.candidates.embedding_table import EmbeddingTable
from data.io.records import read_rows, write_jsonl
from data.vqa import common_answer, load_records
from models.selectors.load import load_selector
from rewards.relevance import relevance
from rewards.vqa_accuracy import vqa_accuracy
from rollouts import candidates

COUNTS = ["--num_beams", "3", "--num_samples", "2", "--num_retrieval", "2", "--num_random", "2"]


def command(folder, output, *more, selector: str | None = "first", model="vlm") -> list[str]:
    found = ["--dataset_name", folder, "--pools", folder / "pools-train.jsonl", "--model", model, "--output", output]
    found += ["--query_table", folder / "train.safetensors", "--example_table", folder / "train.safetensors"]
    found += ["--selector", folder / selector] if selector else []
    return with_options([*found, *COUNTS, "--shots", "1", "2"], more)


@pytest.fixture(scope="module")
def made(selection_files, tmp_path_factory, echoing_module):
    """Groups of the echoing VLM."""
    output = tmp_path_factory.mktemp("candidates") / "groups.jsonl"
    candidates.main(command(selection_files, output, "--gt_prob", "--relevance", "--construct_order", "right"))
    return load_groups(output)


def test_one_group_for_each_query_and_number_of_shots(made, selection_files):
    pools = [row for _, row in read_rows(selection_files / "pools-train.jsonl")]
    expected = [(row["query_id"], shots) for row in pools for shots in (1, 2)]
    assert [(group.id, group.shots) for group in made] == expected
    for group in made:
        assert group.pool == pools[[row["query_id"] for row in pools].index(group.id)]["pool"]
        for candidate in group.candidates:
            assert len(candidate.pointer) == group.shots
            assert group.id not in candidate.pointer


def test_counts_and_no_set_twice(made):
    for group in made:
        methods = [candidate.gen_method for candidate in group.candidates]
        assert methods.count("beam") == 3 if group.shots == 1 else methods.count("beam") >= 2  # (a, b) and (b, a)
        assert methods.count("random") == 2
        assert methods.count("retrieval") <= 2
        assert methods.count("sample") <= 4
        sets = [tuple(sorted(candidate.pointer)) for candidate in group.candidates]
        assert len(set(sets)) == len(sets)


def test_what_the_vlm_answered_and_how_right_it_was(made, selection_files):
    """The VLM echoes the answer of the example shown last, which is the one selected last."""
    records = {record.id: record for record in load_records(selection_files)}
    for group in made:
        for candidate in group.candidates:
            text = common_answer(records[candidate.pointer[-1]])
            answers = records[group.id].answers
            assert candidate.vqa_raw_generation == f" {text}\nQuestion:"
            assert candidate.vqa_pred_answer == text
            assert candidate.vqa_acc_score == candidate.reward == vqa_accuracy(text, answers)
            assert candidate.vqa_correct == (candidate.vqa_acc_score > 0)
            counts = [answers.count(answer) for answer in dict.fromkeys(answers)]
            assert candidate.vqa_gt_prob == pytest.approx(0.5 * sum(min(count / 3, 1) for count in counts))
            assert candidate.vqa_rel_score == relevance(text, answers).score
    accuracies = {candidate.vqa_acc_score for group in made for candidate in group.candidates}
    assert {0.0, 1.0} <= accuracies


def test_log_probabilities_are_those_of_the_selectors_forward_pass(made, selection_files):
    selector = load_selector(selection_files / "first")
    table = EmbeddingTable.load(selection_files / "train.safetensors")
    for group in made:
        places = {item: place for place, item in enumerate(group.pool)}
        pointers = [[places[item] for item in candidate.pointer] for candidate in group.candidates]
        with torch.no_grad():
            found = selector(
                torch.from_numpy(table.values[table.rows([group.id])]),
                torch.from_numpy(table.values[table.rows(group.pool)]),
                torch.arange(len(group.pool))[None],
                torch.tensor([pointers]),
            ).log_probs.sum(-1)[0]
        stored = torch.tensor([candidate.logprob_score for candidate in group.candidates])
        assert torch.allclose(found, stored, atol=1e-5)
        beams = [candidate for candidate in group.candidates if candidate.gen_method == "beam"]
        assert [beam.beam_score for beam in beams] == sorted((beam.beam_score for beam in beams), reverse=True)


def test_started_again_nothing_is_asked_twice(selection_files, tmp_path, echoing, capsys):
    arguments = command(selection_files, tmp_path / "out.jsonl")
    candidates.main(arguments)
    first = (tmp_path / "out.jsonl").read_bytes()
    asked = list(echoing.asked)
    candidates.main(arguments)
    assert echoing.asked == asked
    assert (tmp_path / "out.jsonl").read_bytes() == first
    assert "0 of them asked of the VLM in this run" in capsys.readouterr().out


def test_a_cache_of_answers_serves_other_runs(selection_files, tmp_path, echoing):
    cache = ["--answer_cache", tmp_path / "cache"]
    candidates.main(command(selection_files, tmp_path / "first.jsonl", *cache))
    asked = sum(echoing.asked)
    candidates.main(command(selection_files, tmp_path / "again.jsonl", *cache))
    assert sum(echoing.asked) == asked
    candidates.main(command(selection_files, tmp_path / "second.jsonl", *cache, selector="second"))
    repeated = sum(echoing.asked) - asked
    assert 0 < repeated < asked
    rows = [row for name in ("first", "second") for _, row in read_rows(tmp_path / f"{name}.jsonl")]
    distinct = {(row["id"], *candidate["pointer"]) for row in rows for candidate in row["candidates"]}
    assert sum(echoing.asked) == len(distinct)


def test_other_settings_are_refused(selection_files, tmp_path, echoing):
    candidates.main(command(selection_files, tmp_path / "out.jsonl"))
    with pytest.raises(SystemExit, match=r"field 'selector': the rows there were made with"):
        candidates.main(command(selection_files, tmp_path / "out.jsonl", selector="second"))
    with pytest.raises(SystemExit, match=r"field 'seed': the rows there were made with 0, now it is 3"):
        candidates.main(command(selection_files, tmp_path / "out.jsonl", "--seed", 3))


def test_random_sets_only_as_many_as_there_are(selection_files, tmp_path, echoing):
    counts = ["--num_retrieval", 0, "--num_random", 64]
    candidates.main(command(selection_files, tmp_path / "out.jsonl", *counts, selector=None))
    for group in load_groups(tmp_path / "out.jsonl"):
        assert len(group.candidates) == {1: 10, 2: 45}[group.shots]
        assert {candidate.gen_method for candidate in group.candidates} == {"random"}


def test_given_beams_are_taken_first(selection_files, tmp_path, echoing):
    pools = {row["query_id"]: row["pool"] for _, row in read_rows(selection_files / "pools-train.jsonl")}
    beams = [
        {"id": item, "pool": pool, "candidates": [{"pointer": pool[3:5], "gen_method": "beam", "beam_score": 0.25}]}
        for item, pool in pools.items()
    ]
    write_jsonl(tmp_path / "beams.jsonl", beams)
    given = ["--beams", tmp_path / "beams.jsonl", "--num_retrieval", 0, "--num_random", 44]
    candidates.main(command(selection_files, tmp_path / "out.jsonl", *given, selector=None))
    for group in load_groups(tmp_path / "out.jsonl"):
        if group.shots == 2:
            assert group.candidates[0].pointer == pools[group.id][3:5]
            assert group.candidates[0].beam_score == 0.25
            assert len(group.candidates) == 45
    beams[0]["candidates"][0]["pointer"] = ["train-0" if item != "train-0" else "train-1" for item in ("train-0",)]
    del beams[0]["pool"]
    outside = next(f"train-{n}" for n in range(24) if f"train-{n}" not in pools[beams[0]["id"]])
    beams[0]["candidates"][0]["pointer"] = [outside]
    write_jsonl(tmp_path / "beams.jsonl", beams)
    with pytest.raises(SystemExit, match="candidate 0: expected examples of the query's pool, found"):
        candidates.main(command(selection_files, tmp_path / "more.jsonl", *given, selector=None))


def test_filters_keep_groups_by_their_share_of_right_candidates(selection_files, tmp_path, echoing, capsys):
    candidates.main(command(selection_files, tmp_path / "all.jsonl"))
    share = {
        (group.id, group.shots): sum(item.vqa_correct for item in group.candidates) / len(group.candidates)
        for group in load_groups(tmp_path / "all.jsonl")
    }
    for name, more, kept in (
        ("balance", ["--balance", 0.2, 0.6], [key for key, value in share.items() if 0.2 <= value <= 0.6]),
        ("positive", ["--require_positive"], [key for key, value in share.items() if value > 0]),
    ):
        candidates.main(command(selection_files, tmp_path / f"{name}.jsonl", *more))
        assert 0 < len(kept) < len(share)
        assert [(group.id, group.shots) for group in load_groups(tmp_path / f"{name}.jsonl")] == kept
        assert f"{len(kept)} of {len(share)} groups written" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="none of 24 groups passes"):
        candidates.main(command(selection_files, tmp_path / "none.jsonl", "--balance", 0.99, 0.999))
    assert not (tmp_path / "none.jsonl").exists()


def test_a_group_for_each_number_of_shots_is_a_format_of_its_own(made, tmp_path):
    write_groups(tmp_path / "again.jsonl", made)
    assert load_groups(tmp_path / "again.jsonl") == made
    row = json.loads((tmp_path / "again.jsonl").read_text().splitlines()[0])
    write_jsonl(tmp_path / "twice.jsonl", [row, row])
    with pytest.raises(ValueError, match="duplicate 'train-0' with 1 shots"):
        load_groups(tmp_path / "twice.jsonl")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--balance", "0.6", "0.4"], "--balance: expected low <= high, found 0.6 0.4"),
        (["--temperatures", "0"], "--temperatures: expected a number above 0"),
        (["--num_beams", "-1"], "--num_beams: expected at least 0"),
        (["--shots", "0"], "--shots: expected at least 1"),
        (["--shots", "11"], "11 shots need pools of at least 11 examples"),
        (["--selector", "nowhere/at/all"], "--selector: 'nowhere/at/all': no such folder"),
    ],
)
def test_errors_come_before_the_vlm_is_loaded(selection_files, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as error:
        candidates.main(command(selection_files, tmp_path / "out.jsonl", *more))
    assert message in f"{error.value} {capsys.readouterr().err}"
    assert not (tmp_path / "out.jsonl").exists()


def test_options_that_do_not_go_together(selection_files, tmp_path):
    plain = ["--dataset_name", selection_files, "--pools", selection_files / "pools-train.jsonl", "--model", "vlm"]
    plain = [str(part) for part in (*plain, "--output", tmp_path / "out.jsonl")]
    with pytest.raises(SystemExit, match="are needed by --num_retrieval above 0"):
        candidates.main(plain)
    with pytest.raises(SystemExit, match="are needed by --selector"):
        candidates.main([*plain, "--num_retrieval", "0", "--selector", str(selection_files / "first")])
    with pytest.raises(SystemExit, match="nothing to make"):
        candidates.main([*plain, "--num_retrieval", "0", "--num_random", "0"])
