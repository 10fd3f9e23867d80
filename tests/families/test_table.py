"""The table of docs/families.md is what the tests found; and a run that fails is never taken for one that works."""

from subprocess import CompletedProcess

import pytest
from family_cells import ADAPTERS, METHODS, Cell, Fault, Refused, check_learned
from family_table import COLUMNS, PAGE, STORED, Outcome, merged, note, read_record, table, with_table

VERSIONS = {"versions": {"trl": "1"}}


def test_the_page_is_what_was_found():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page, read_record(STORED)), "make families-table"


def test_a_line_a_family_and_a_reason_once():
    no = {"result": "no", "reason": "too old", **VERSIONS}
    record = {"b": {"SFT": no, "GRPO": no}, "a": {"SFT": {"result": "yes", "reason": None, **VERSIONS}}}
    lines = table(record).splitlines()
    assert lines[2] == "| `a` | yes | " + " | ".join(["not run"] * (len(COLUMNS) - 1)) + " |"
    assert lines[3].startswith("| `b` | no (1) | no (1) | not run |")
    assert lines[4:] == ["", "1. too old", "", "Found with trl 1."]


def test_the_table_is_written_between_its_marks_and_can_be_written_again(tmp_path):
    note(tmp_path / "found.json", "a", "SFT", Outcome("plain", "of a kind"))
    record = read_record(tmp_path / "found.json")
    page = PAGE.read_text(encoding="utf-8")
    written = with_table(page, record)
    assert "| `a` | plain (1) |" in written
    assert with_table(written, record) == written
    assert with_table(written, read_record(STORED)) == with_table(page, read_record(STORED))


def test_what_was_not_run_now_stays():
    assert merged({"a": {"SFT": 1, "GRPO": 2}}, {"a": {"SFT": 3}, "b": {}}) == {"a": {"SFT": 3, "GRPO": 2}, "b": {}}


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def acted(tmp_path):
    """Function: how `--validate_only` ends, and how the run -> a cell whose programs end so."""

    def cell(*endings: tuple[int, str]) -> Cell:
        waiting = iter(endings)
        return Cell(
            lambda *_, **__: CompletedProcess((), *_ended(next(waiting))), tmp_path / "m", tmp_path, tmp_path / "r"
        )

    return cell


def _ended(ending: tuple[int, str]) -> tuple[int, str, str]:
    status, stderr = ending
    return status, "", stderr


def test_a_refusal_is_its_one_line_without_the_folder(acted, tmp_path):
    refused = (1, f"note: so\nerror: {tmp_path / 'm'}: not for this\n")
    with pytest.raises(Refused, match="^m: not for this$"):
        acted(refused, refused).train(METHODS["SFT"], "full")


@pytest.mark.parametrize(
    "endings",
    [
        [(1, "Traceback (most recent call last):\nKeyError: 'x'\n")],
        [(1, "error: one\nerror: two\n")],
        [(1, "")],
        [(1, "error: only now\n"), (0, "")],
        [(1, "error: this\n"), (1, "error: another\n")],
    ],
    ids=["crash", "two lines", "nothing said", "valid", "refused for another reason"],
)
def test_anything_else_is_a_fault(acted, endings):
    with pytest.raises(Fault):
        acted(*endings).train(METHODS["SFT"], "full")


def test_a_reason_for_the_plain_way_is_found(acted):
    cell = acted((0, "UserWarning: each row computes its prompt by itself (shared_prefix: auto): a window\n"))
    cell.train(METHODS["GRPO"], "full")
    assert cell.reasons == ["a window"]


def test_one_family_with_one_trainer(cell):
    """What `make test-families` does for all of them in every way."""
    runs = cell("qwen3_vl")
    trained = runs.train(METHODS["SFT"], "adapters", **ADAPTERS)
    check_learned("adapters", trained, runs.model)
    with pytest.raises(Fault, match="have moved|has moved"):
        check_learned("full", runs.model, runs.model)
