"""Unfinished work of other settings is refused in words, and discarded where asked; recipes' splits are validated."""

import importlib
import json

import pytest

from data.io.records import RecordError, write_jsonl
from data.io.shards import ShardStore
from rewards import validate

SETTINGS = {"model": "a" * 64, "shots": 2, "vlm": {"prompt": "chat", "pixels": 100}, "system": "x" * 300}


def _begin(folder, **changed) -> None:
    with ShardStore(folder, {**SETTINGS, **changed}) as store:
        store.append({"id": 1, "text": "earlier"})


def _refused(folder, **changed) -> str:
    with pytest.raises(RecordError) as error, ShardStore(folder, {**SETTINGS, **changed}):
        pass
    return str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shots": 3}, "field 'shots': the rows there were made with 2, now it is 3;"),
        (
            {"model": "b" * 64},
            "field 'model': the rows there were made with other content, by its fingerprint aaaaaaaa, now it is bbb",
        ),
        (
            {"vlm": {"prompt": "chat", "pixels": 50}},
            "field 'vlm.pixels': the rows there were made with 100, now it is 50;",
        ),
        ({"seed": 0}, "field 'seed': the rows there were made with None, now it is 0;"),
        ({"system": "y" * 300}, "field 'system': the rows there were made with 'xxxxx"),
    ],
)
def test_p8_what_differs_is_said_in_words(changed, message, tmp_path):
    _begin(tmp_path)
    shown = _refused(tmp_path, **changed)
    assert message in shown
    assert shown.endswith("use the same settings or another folder, or discard the rows there with --restart")
    assert len(shown.splitlines()) == 1
    assert len(shown) < 400
    assert "a" * 20 not in shown


def test_p8_every_setting_that_differs_has_a_line(tmp_path):
    _begin(tmp_path)
    assert [line.split("'")[1] for line in _refused(tmp_path, shots=1, model="other").splitlines()] == [
        "model",
        "shots",
    ]


def test_p8_a_restart_discards_rows_and_settings(tmp_path):
    _begin(tmp_path)
    (tmp_path / "shard-00003.jsonl").write_text('{"id": 7}\n')  # of a process that is no more
    with ShardStore(tmp_path, {"shots": 9}, restart=True) as store:
        assert store.done == set()
        store.append({"id": 2})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"shots": 9}
    with ShardStore(tmp_path, {"shots": 9}) as store:
        assert store.done == {2}


def test_p8_a_restart_leaves_work_alone_that_another_process_is_doing(tmp_path):
    with ShardStore(tmp_path, SETTINGS) as store:
        store.append({"id": 1})
        with (
            pytest.raises(RecordError, match="process .* has been writing to it since"),
            ShardStore(tmp_path, {"shots": 9}, restart=True),
        ):
            pass
        store.append({"id": 2})
    with ShardStore(tmp_path, SETTINGS) as store:
        assert store.done == {1, 2}


COMMANDS = ["rewards.score", "rewards.reward_bench", "rollouts.completions", "rollouts.candidates", "rollouts.beams",
            "rollouts.factor_reports"]  # fmt: skip


@pytest.mark.parametrize("command", [[name] for name in COMMANDS] + [["rollouts.factor_routing", "run"]])
def test_p8_every_command_that_keeps_unfinished_work_can_restart(command, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(command[0]).main([*command[1:], "--help"])
    assert "--restart" in capsys.readouterr().out


# -- P9: the recipe's splits -----------------------------------------------------------------------------------------


def _validated(folder, capsys, *more: str) -> list[str]:
    with pytest.raises(SystemExit) as status:
        validate.main(["--config", str(folder / "recipe.yaml"), *more])
    assert status.value.code == 0, status.value.code
    return [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]


def _data(folder, splits, *keys: str) -> None:
    row = {"report": "r", "ground_truth_agents": ["blur_filter"], "ground_truth_filtered_data": [1]}
    for split in splits:
        write_jsonl(folder / f"{split}.jsonl", [row])
    lines = [f"dataset_name: {folder}", "reward_funcs: [agent_selection]", *keys]
    (folder / "recipe.yaml").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("splits", "keys", "expected"),
    [
        (["train", "test"], [], ["train", "test"]),
        (["train"], [], ["train"]),
        (["train", "validation", "test"], ["dataset_test_split: validation"], ["train", "validation"]),
        (["first", "second"], ["dataset_train_split: first", "dataset_test_split: second"], ["first", "second"]),
        (["first"], ["dataset_train_split: first"], ["first"]),
        (["one"], ["dataset_train_split: one", "dataset_test_split: one"], ["one"]),
    ],
)
def test_p9_the_recipes_splits_are_validated(splits, keys, expected, tmp_path, capsys):
    _data(tmp_path, splits, *keys)
    assert _validated(tmp_path, capsys) == expected


def test_p9_a_split_that_the_recipe_names_must_be_there(tmp_path):
    _data(tmp_path, ["train"], "dataset_test_split: validation")
    with pytest.raises(SystemExit, match="found none of validation.jsonl"):
        validate.main(["--config", str(tmp_path / "recipe.yaml")])


def test_p9_a_file_is_validated_once_and_named_splits_come_first(tmp_path, capsys):
    _data(tmp_path, ["train", "extra"])
    assert _validated(tmp_path, capsys, "--dataset_name", str(tmp_path / "extra.jsonl")) == ["train"]
    assert _validated(tmp_path, capsys, "--splits", "extra") == ["extra"]
