"""Answers are asked for once, by content, and survive being killed; what decides an answer is in its key."""

import json

import pytest
from PIL import Image

from data.io.records import RecordError
from data.vqa import VqaRecord
from models.run_folders import model_fingerprint
from rollouts.frozen_vlm.answers import AnswerBook, accuracies
from rollouts.frozen_vlm.requests import InContextRequest


def record(number, answers=("red",) * 10, image=None, question=None) -> VqaRecord:
    return VqaRecord(
        id=number, question=question or f"color {number}?", answers=list(answers), images=[image or f"{number}.png"]
    )


A, B, QUERY = record("a", ["red"] * 10), record("b", ["blue"] * 10), record("q", ["blue"] * 2 + ["red"] * 8)


def test_equal_requests_are_asked_once(echo_vlm):
    book = AnswerBook(echo_vlm, {})
    again = record("other id", A.answers, "a.png", A.question)  # the same content under another id
    requests = [InContextRequest(QUERY, (A,)), InContextRequest(QUERY, (B,)), InContextRequest(QUERY, (again,))]
    assert [answer.text for answer in book.answers(requests)] == ["red", "blue", "red"]
    assert echo_vlm.asked == [2]
    book.answers(requests[1:])
    assert echo_vlm.asked == [2]
    assert dict(book.counts) == {"asked": 5, "computed": 2}


@pytest.mark.parametrize(
    "other",
    [
        InContextRequest(QUERY, (B, A)),  # order
        InContextRequest(QUERY, (A,)),
        InContextRequest(record("q", image="other.png"), (A, B)),
        InContextRequest(record("q", question="shape?", image="q.png"), (A, B)),
        InContextRequest(QUERY, (A, record("b", ["green"] * 10))),
    ],
)
def test_what_the_vlm_sees_makes_the_key(echo_vlm, other):
    book = AnswerBook(echo_vlm, {})
    book.answers([InContextRequest(QUERY, (A, B)), other])
    assert echo_vlm.asked == [2]


def test_the_querys_own_answers_do_not(echo_vlm):
    book = AnswerBook(echo_vlm, {})
    book.answers([InContextRequest(QUERY, (A,)), InContextRequest(record("q", ["no"] * 10), (A,))])
    assert echo_vlm.asked == [1]


def test_answers_are_kept_in_a_folder_for_the_same_settings(echo_vlm, tmp_path):
    request = InContextRequest(QUERY, (A,))
    AnswerBook(echo_vlm, {"model": "m"}, tmp_path).answers([request])
    AnswerBook(echo_vlm, {"model": "m"}, tmp_path).answers([request])
    assert echo_vlm.asked == [1]
    AnswerBook(echo_vlm, {"model": "other"}, tmp_path).answers([request])
    AnswerBook(echo_vlm, {"model": "m"}, tmp_path, {"max_new_tokens": 9}).answers([request])
    assert echo_vlm.asked == [1, 1, 1]
    AnswerBook(echo_vlm, {"model": "m"}, tmp_path).answers([request])
    assert echo_vlm.asked == [1, 1, 1]


def test_a_line_that_was_cut_short_is_asked_again(echo_vlm, tmp_path):
    AnswerBook(echo_vlm, {}, tmp_path).answers([InContextRequest(QUERY, (A,))])
    (path,) = tmp_path.glob("answers-*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-1])
    book = AnswerBook(echo_vlm, {}, tmp_path)
    assert path.read_bytes() == whole
    book.answers([InContextRequest(QUERY, (A,)), InContextRequest(QUERY, (B,))])
    assert echo_vlm.asked == [1, 1]
    assert len(path.read_bytes().splitlines()) == 2
    del book  # gives up its file
    path.write_bytes(b"no json\n" + whole)
    with pytest.raises(RecordError, match=r"answers-0\.jsonl:1: not a line of stored answers"):
        AnswerBook(echo_vlm, {}, tmp_path)


def test_runs_at_the_same_time_write_files_of_their_own(echo_vlm, tmp_path):
    first, second = AnswerBook(echo_vlm, {}, tmp_path), AnswerBook(echo_vlm, {}, tmp_path)
    first.answers([InContextRequest(QUERY, (A,))])
    second.answers([InContextRequest(QUERY, (B,))])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["answers-0.jsonl", "answers-1.jsonl"]
    AnswerBook(echo_vlm, {}, tmp_path).answers([InContextRequest(QUERY, (A,)), InContextRequest(QUERY, (B,))])
    assert echo_vlm.asked == [1, 1]


def test_prepare_asks_in_parts_that_are_each_kept(echo_vlm, tmp_path):
    book = AnswerBook(echo_vlm, {}, tmp_path)
    requests = [InContextRequest(record(number), (A,)) for number in range(7)]
    book.prepare(requests + requests, chunk=3)
    assert echo_vlm.asked == [3, 3, 1]
    (path,) = tmp_path.glob("answers-*.jsonl")
    assert [len(json.loads(line)["answers"]) for line in path.read_text().splitlines()] == [3, 3, 1]
    book.answers(requests)
    assert echo_vlm.asked == [3, 3, 1]
    assert dict(book.counts) == {"asked": 7, "computed": 7}


def test_probability_of_the_right_answers_counts_annotators(echo_vlm):
    """Two said blue (weight 2/3), eight said red (weight 1); the VLM gives .5 to each, .25 without examples."""
    book = AnswerBook(echo_vlm, {})
    requests = [InContextRequest(QUERY, (A,)), InContextRequest(QUERY)]
    assert book.right_answer_probabilities(requests) == pytest.approx([0.5 * (1 + 2 / 3), 0.25 * (1 + 2 / 3)])
    assert echo_vlm.asked == [4]


def test_accuracy_is_the_official_one(echo_vlm):
    book = AnswerBook(echo_vlm, {})
    requests = [InContextRequest(QUERY, (A,)), InContextRequest(QUERY, (B,)), InContextRequest(QUERY)]
    assert accuracies(book.answers(requests), requests) == pytest.approx([1.0, 0.6, 0.0])


def test_the_fingerprint_of_a_folder_is_that_of_its_weights(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights" if name != "three" else b"others")
    first, second, third = (model_fingerprint(str(tmp_path / name)) for name in ("one", "two", "three"))
    assert first == second != third
    assert model_fingerprint("owner/model") == "owner/model"


def test_pictures_count_by_their_content_with_the_real_vlm(tiny_model, tmp_path):
    from rollouts.frozen_vlm.engine import InContextVLM

    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    book = AnswerBook(InContextVLM.load(str(tiny_model), device="cpu"), {})
    queries = [record(name, question="color?", image=str(tmp_path / f"{name}.png")) for name in "abc"]
    book.answers([InContextRequest(query) for query in queries])
    assert book.counts["computed"] == 2
