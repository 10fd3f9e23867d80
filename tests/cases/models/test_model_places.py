"""P7: a model that is no folder is told in one message by every command, before anything is read; P8: a start that
made no row binds nobody."""

import importlib

import pytest

from data.io.records import RecordError
from data.io.shards import ShardStore
from models.embeddings import load_encoder
from models.errors import ModelError
from models.families.loading import load_processor, load_vlm
from models.model_paths import loading

IN_CONTEXT = ["--pools", "p.jsonl", "--dataset_name", "e", "--output", "o.jsonl"]
COMMANDS = {
    "data.factors": ["--dataset_name", "a.jsonl", "--output_dir", "o", "--encoder"],
    "rewards.score": ["--dataset_name", "a.jsonl", "--output", "o.jsonl", "--model"],
    "rewards.eval": ["--dataset_name", "a.jsonl", "--output_dir", "o", "--model"],
    "rewards.reward_bench": ["--dataset_name", "a.jsonl", "--output_dir", "o", "--model"],
    "rollouts.compare_factors": ["--dataset_name", "a.jsonl", "--output_dir", "o", "--predictors", "x=y/z", "--vlm"],
    "rollouts.completions": ["--dataset_name", "a.jsonl", "--output", "o.jsonl", "--model"],
    "rollouts.filter_dataset": ["--dataset_name", "a", "--config", "r.yaml", "--output", "o.jsonl", "--model"],
    "rollouts.embeddings": ["--dataset_name", "a.jsonl", "--output", "o.safetensors", "--image_encoder"],
    "rollouts.pools": ["--dataset_name", "a.jsonl", "--sampler", "random", "--output", "o.jsonl", "--text_encoder"],
    "rollouts.beams": [*IN_CONTEXT, "--model"],
    "rollouts.candidates": [*IN_CONTEXT, "--model", "owner/name", "--selector"],
    "rollouts.factor_reports": ["--dataset_name", "a.jsonl", "--output_dir", "o", "--factors"],
}
"""Arguments of each command, of which the last one names a model."""
NAMES = ("./nowhere", "/nowhere/model", "outputs/grpo", "a/b/c")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_p07_no_such_folder_in_any_command(command, tmp_path):
    main = importlib.import_module(command).main
    for name in NAMES:
        with pytest.raises(SystemExit) as ended:
            main([*COMMANDS[command], name])
        option = COMMANDS[command][-1]
        assert ended.value.code == f"error: {option}: '{name}': no such folder"
    assert not any(tmp_path.glob("o*/*")), "something was written"


def test_p07_a_folder_with_a_similar_name_is_named(tmp_path):
    (tmp_path / "out" / "tiny_model").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("rewards.score").main(
            ["--dataset_name", "a.jsonl", "--output", "o.jsonl", "--model", "./out/tiny_modle"]
        )
    assert ended.value.code == "error: --model: './out/tiny_modle': no such folder; there is out/tiny_model"


@pytest.mark.parametrize("load", [load_vlm, load_processor, load_encoder])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "'./nowhere': no such folder"),
        ("owner/no-such-model", "owner/no-such-model: cannot be loaded: "),
    ],
)
def test_p07_from_python(load, name, message):
    with pytest.raises(ModelError) as found:
        load(name)
    assert str(found.value).startswith(message)


def test_p07_what_the_machine_refuses_is_no_missing_model():
    with pytest.raises(PermissionError), loading("owner/name"):
        raise PermissionError(13, "Permission denied", "cache")


def test_p08_a_start_that_made_no_row_binds_nobody(tmp_path):
    with ShardStore(tmp_path / "o.parts", {"model": "./tiny_modle"}):
        pass
    with ShardStore(tmp_path / "o.parts", {"model": "./tiny_model"}) as store:
        store.append({"id": 1})
    with pytest.raises(RecordError, match="'model'"), ShardStore(tmp_path / "o.parts", {"model": "another"}):
        pass
