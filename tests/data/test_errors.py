"""Errors that a user can mend: made of location, field and text, told once, the same in every process."""

import pickle

import pytest

from data.errors import UserError
from data.io.records import RecordError
from models.errors import ModelError
from rewards.registry import RewardSpecError


def test_the_message_is_made_of_location_field_and_text():
    error = UserError("expected a text, found 3", "my.jsonl:2", "question")
    assert str(error) == "my.jsonl:2: field 'question': expected a text, found 3"
    assert (error.location, error.field, error.text) == ("my.jsonl:2", "question", "expected a text, found 3")
    assert str(UserError("no such folder")) == "no such folder"


@pytest.mark.parametrize("kind", [UserError, ModelError, RewardSpecError])
def test_a_place_is_put_before_and_the_kind_stays(kind):
    error = kind("no such folder", "outputs/rce").at("--model")
    assert type(error) is kind
    assert str(error) == "--model: outputs/rce: no such folder"
    assert str(kind("no such folder").at("--model").at("line 3")) == "line 3: --model: no such folder"


@pytest.mark.parametrize(
    "error", [UserError("a", "b", "c"), ModelError("a").at("b"), RecordError(["a", "b"]).at("c")], ids=repr
)
def test_another_process_raises_the_same(error):
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
