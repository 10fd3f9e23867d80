"""Which checkpoint a run goes on from, and when it does not."""

import json
from types import SimpleNamespace

import pytest

from models.run_folders import checkpoint_folders, mark_complete, newest_complete_checkpoint
from trainers.run.origin import write_run
from trainers.run.resuming import RunStart, _decide
from trainers.setup.recipes import RecipeError

RECORD = {
    "method": "GRPO",
    "settings": {"learning_rate": 0.1, "beta": 0.04},
    "sources": {"model_name_or_path": {"name": "a", "content": "12345678"}},
    "data": {"train": {"rows": 4, "sha256": "abcdefgh"}},
    "processes": 1,
    "distribution": "NO",
    "versions": {"torch": "2.12"},
}


@pytest.fixture
def make(tmp_path):
    def checkpoint(step: int, complete: bool = True, record: dict = RECORD, **facts):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("trainer_state.json", "posttrain_state.json"):
            (folder / name).write_text("{}")
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rollouts_0.safetensors"):
            (folder / name).write_bytes(b"weights of step %d" % step)
        (folder / "global_step").mkdir()
        (folder / "global_step" / "zero_1.pt").write_bytes(b"of rank 1")
        write_run(folder, record)
        if complete:
            mark_complete(folder, global_step=step, **facts)
        return folder

    return checkpoint


def decide(tmp_path, resume="true", record=RECORD, named=None, max_steps=10, push=False):
    args = SimpleNamespace(
        output_dir=str(tmp_path),
        resume_from_checkpoint=named,
        max_steps=max_steps,
        push_to_hub=push,
        hub_model_id="a/b",
    )
    return _decide(record, args, resume)


def changed(**parts) -> dict:
    """`RECORD` with other entries in its parts."""
    return {**RECORD, **{name: {**RECORD[name], **part} for name, part in parts.items()}}


# -- which one --------------------------------------------------------------------------------------------------------


def test_newest_complete_checkpoint_by_number_not_by_name(tmp_path, make):
    for step in (2, 10, 9):
        make(step)
    make(11, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [f"checkpoint-{n}" for n in (2, 9, 10, 11)]
    assert newest_complete_checkpoint(tmp_path).name == "checkpoint-10"
    assert decide(tmp_path) == RunStart(RECORD, str(tmp_path / "checkpoint-10"))


def test_nothing_to_resume(tmp_path, make, capsys):
    assert decide(tmp_path).checkpoint is None
    make(1, complete=False)
    assert decide(tmp_path).checkpoint is None
    assert f"starting anew: no checkpoint in {tmp_path} is complete" in capsys.readouterr().out


def test_earlier_run_in_the_way_is_an_error(tmp_path, make):
    make(1)
    with pytest.raises(RecipeError, match="holds checkpoints of an earlier run and resume is false"):
        decide(tmp_path, resume="false")


def test_named_checkpoint_wins(tmp_path, make):
    make(1)
    make(2)
    named = str(tmp_path / "checkpoint-1")
    assert decide(tmp_path, named=named).checkpoint == named
    with pytest.raises(RecipeError, match="no checkpoint in"):
        decide(tmp_path, named=str(tmp_path / "checkpoint-7"))


# -- damage -----------------------------------------------------------------------------------------------------------

FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    *("posttrain_state.json", "rollouts_0.safetensors", "global_step/zero_1.pt", "run.json"),
)


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("harm", [remove, truncate, flip])
@pytest.mark.parametrize("name", FILES)
def test_t11_a_damaged_checkpoint_is_said_and_the_older_whole_one_serves(tmp_path, make, capsys, name, harm):
    make(9)
    harm(make(10) / name)
    assert decide(tmp_path).checkpoint == str(tmp_path / "checkpoint-9")
    said = capsys.readouterr().out
    assert f"ignoring {tmp_path / 'checkpoint-10'}, which is damaged: {name} " in said
    assert f"resuming from {tmp_path / 'checkpoint-9'}" in said


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"files": {}}', '{"files": {"a": 1}}', '{"global_step": 10}'])
def test_t11_a_complete_file_that_lists_nothing_is_damage(tmp_path, make, capsys, content):
    make(9)
    (make(10) / "complete.json").write_text(content)
    assert decide(tmp_path).checkpoint == str(tmp_path / "checkpoint-9")
    assert "complete.json does not list the files of a checkpoint" in capsys.readouterr().out


def test_t11_the_complete_file_of_another_run_fits_no_other_files(tmp_path, make):
    make(9)
    (make(10) / "complete.json").write_text((tmp_path / "checkpoint-9" / "complete.json").read_text())
    assert decide(tmp_path).checkpoint == str(tmp_path / "checkpoint-9")


def test_t11_where_none_is_whole_nothing_starts(tmp_path, make):
    for step in (9, 10):
        remove(make(step) / "optimizer.pt")
    make(11, complete=False)
    with pytest.raises(RecipeError) as error:
        decide(tmp_path)
    assert f"no checkpoint in {tmp_path} is whole" in str(error.value)
    assert str(error.value).count("optimizer.pt is missing") == 2


@pytest.mark.parametrize("harm", [remove, truncate, flip])
def test_t11_a_named_checkpoint_must_be_whole(tmp_path, make, harm):
    make(9)
    folder = make(10)
    harm(folder / "optimizer.pt")
    with pytest.raises(RecipeError, match="is damaged: optimizer.pt"):
        decide(tmp_path, named=str(folder))
    (folder / "complete.json").unlink()
    with pytest.raises(RecipeError, match="has no complete.json"):
        decide(tmp_path, named=str(folder))


def test_t26_weights_alone_are_not_resumed(tmp_path, make):
    folder = make(4, resumable=False)
    for named in (None, str(folder)):
        with pytest.raises(RecipeError, match="save_only_model: .*checkpoint-4 holds weights without optimizer"):
            decide(tmp_path, named=named)


# -- another run ------------------------------------------------------------------------------------------------------

OTHERS = {
    "learning_rate": (changed(settings={"learning_rate": 0.2}), "learning_rate: was 0.1, is 0.2"),
    "new key": (changed(settings={"adaptive_kl": True}), "adaptive_kl: was not set, is true"),
    "default again": ({**RECORD, "settings": {"learning_rate": 0.1}}, "beta: was 0.04, is not set"),
    "data": (
        changed(data={"train": {"rows": 5, "sha256": "zz"}}),
        "train (data): was 4 rows (content abcdefgh), is 5 rows (content zz)",
    ),
    "model": (
        changed(sources={"model_name_or_path": {"name": "b", "content": "87654321"}}),
        "model_name_or_path: was a (content 12345678), is b (content 87654321)",
    ),
    "version": (changed(versions={"torch": "2.14"}), "torch: was 2.12, is 2.14"),
    "processes": ({**RECORD, "processes": 2}, "processes: was 1, is 2"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_t10_what_changed_is_named_and_taken_where_the_user_says_so(tmp_path, make, name):
    make(3)
    record, message = OTHERS[name]
    with pytest.raises(RecipeError) as error:
        decide(tmp_path, record=record)
    assert f"  {message}\n" in str(error.value)
    assert "resume: changed" in str(error.value)
    assert decide(tmp_path, record=record, resume="changed") == RunStart(record, str(tmp_path / "checkpoint-3"))


def test_t10_every_change_is_named_at_once(tmp_path, make):
    make(3)
    record = changed(settings={"learning_rate": 0.2, "beta": 1.0}, versions={"torch": "2.14"})
    with pytest.raises(RecipeError) as error:
        decide(tmp_path, record=record)
    assert sum(line.startswith("  ") for line in str(error.value).splitlines()) == 3


def test_t10_the_same_content_under_another_name_is_no_change(tmp_path, make):
    make(3)
    record = changed(sources={"model_name_or_path": {"name": "elsewhere", "content": "12345678"}})
    assert decide(tmp_path, record=record).checkpoint == str(tmp_path / "checkpoint-3")


def test_t10_a_checkpoint_of_another_trainer_is_refused(tmp_path, make):
    named = str(make(3))
    record = {**RECORD, "method": "RCE"}
    with pytest.raises(RecipeError, match="trainer: was GRPO, is RCE"):
        decide(tmp_path / "new", record=record, named=named)
    with pytest.raises(RecipeError, match="is of the trainer GRPO, expected RCE"):
        decide(tmp_path / "new", record=record, named=named, resume="changed")


def test_t10_a_checkpoint_without_a_record_is_refused(tmp_path, make):
    make(3, record={})
    with pytest.raises(RecipeError, match=r"checkpoint-3 has no run\.json"):
        decide(tmp_path)


def test_t22_deepspeed_goes_on_with_as_many_processes(tmp_path, make):
    record = {**RECORD, "distribution": "DEEPSPEED", "processes": 2}
    make(3, record=record)
    assert decide(tmp_path, record=record).checkpoint is not None
    with pytest.raises(RecipeError, match="written by 2 processes; DeepSpeed can only go on with as many, found 1"):
        decide(tmp_path, record={**record, "processes": 1}, resume="changed")


@pytest.mark.parametrize("key", ["learning_rate", "weight_decay", "adam_beta1", "lr_scheduler_type"])
def test_t24_deepspeed_keeps_the_optimizer_of_the_checkpoint_and_says_so(tmp_path, make, key):
    record = {**RECORD, "distribution": "DEEPSPEED"}
    make(3, record=record)
    other = {**record, "settings": {**record["settings"], key: 0.5}}
    with pytest.raises(RecipeError, match=f"so that another {key} .* would have no effect"):
        decide(tmp_path, record=other, resume="changed")


# -- finished ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["true", "changed"])
@pytest.mark.parametrize("checkpoints", [(), (10,), (4, 10)])
def test_t01_a_finished_run_is_left_alone(tmp_path, make, capsys, resume, checkpoints):
    for step in checkpoints:
        make(step)
    write_run(tmp_path, RECORD, finished=10)
    assert decide(tmp_path, resume=resume) is None
    assert f"already finished: the run in {tmp_path} ended after step 10" in capsys.readouterr().out


def test_t01_how_to_push_it_again_is_said(tmp_path, capsys):
    write_run(tmp_path, RECORD, finished=10)
    assert decide(tmp_path, push=True) is None
    assert f"hf upload a/b {tmp_path}" in capsys.readouterr().out
    assert decide(tmp_path, push=False) is None
    assert "hf upload" not in capsys.readouterr().out


def test_t01_a_finished_run_with_another_recipe_is_an_error(tmp_path, make):
    make(10)
    record = changed(settings={"max_steps": 20})
    write_run(tmp_path, RECORD, finished=10)
    with pytest.raises(RecipeError, match="holds a finished run that started from something else:\n  max_steps: was"):
        decide(tmp_path, record=record, max_steps=20)
    start = decide(tmp_path, record=record, max_steps=20, resume="changed")
    assert start.checkpoint == str(tmp_path / "checkpoint-10")


def test_t01_a_finished_run_without_checkpoints_cannot_go_on(tmp_path):
    write_run(tmp_path, RECORD, finished=10)
    record = changed(settings={"max_steps": 20})
    with pytest.raises(RecipeError, match="holds a finished run without checkpoints to go on from"):
        decide(tmp_path, record=record, max_steps=20, resume="changed")


def test_t01_a_finished_run_is_not_written_over(tmp_path):
    write_run(tmp_path, RECORD, finished=10)
    with pytest.raises(RecipeError, match="holds a finished run and resume is false"):
        decide(tmp_path, resume="false")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_t01_a_run_file_that_cannot_be_read_says_nothing(tmp_path, make, content):
    make(3)
    (tmp_path / "run.json").write_text(content)
    assert decide(tmp_path).checkpoint == str(tmp_path / "checkpoint-3")


def test_runs_store_plain_json(tmp_path):
    write_run(tmp_path, RECORD, finished=3)
    assert json.loads((tmp_path / "run.json").read_text()) == {**RECORD, "finished": 3}
