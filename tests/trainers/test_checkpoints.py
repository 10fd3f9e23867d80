"""Which checkpoint a run goes on from."""

from types import SimpleNamespace

import pytest

from trainers.checkpoints import checkpoint_folders, checkpoint_to_resume, newest_complete_checkpoint
from trainers.recipes import RecipeError


@pytest.fixture
def make(tmp_path):
    def checkpoint(step: int, complete: bool = True):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        if complete:
            (folder / "complete.json").write_text("{}")
        return folder

    return checkpoint


def run(tmp_path, named=None):
    return SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=named)


def test_newest_complete_checkpoint_by_number_not_by_name(tmp_path, make):
    for step in (2, 10, 9):
        make(step)
    make(11, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [f"checkpoint-{n}" for n in (2, 9, 10, 11)]
    assert newest_complete_checkpoint(tmp_path).name == "checkpoint-10"
    assert checkpoint_to_resume(run(tmp_path), resume=True) == str(tmp_path / "checkpoint-10")


def test_nothing_to_resume(tmp_path, make):
    assert checkpoint_to_resume(run(tmp_path), resume=True) is None
    make(1, complete=False)
    assert checkpoint_to_resume(run(tmp_path), resume=True) is None


def test_earlier_run_in_the_way_is_an_error(tmp_path, make):
    make(1)
    with pytest.raises(RecipeError, match="holds checkpoints of an earlier run and resume is false"):
        checkpoint_to_resume(run(tmp_path), resume=False)


def test_named_checkpoint_wins(tmp_path, make):
    make(1)
    make(2)
    named = str(tmp_path / "checkpoint-1")
    assert checkpoint_to_resume(run(tmp_path, named), resume=True) == named
    with pytest.raises(RecipeError, match="no checkpoint in"):
        checkpoint_to_resume(run(tmp_path, str(tmp_path / "checkpoint-7")), resume=True)
