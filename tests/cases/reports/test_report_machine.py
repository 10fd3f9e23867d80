"""The command that was really run, and readers of stored lines that only a line break ends."""

import json

import pytest

from trainers.run.machine import cpu_name, launched_command, usable_cores

PYTHON = "/v/bin/python3.11"
SCRIPT = ["trainers/grpo.py", "--config", "my recipe.yaml"]
OWN = [PYTHON, "-u", *SCRIPT]


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([], "python3.11 -u trainers/grpo.py --config 'my recipe.yaml'"),
        ([["-bash"]], "python3.11 -u trainers/grpo.py --config 'my recipe.yaml'"),
        (
            [
                [PYTHON, "/v/bin/accelerate", "launch", "--config_file", "cpu.yaml", *SCRIPT],
                ["bash", "pipelines/quickstart.sh"],
            ],
            "accelerate launch --config_file cpu.yaml trainers/grpo.py --config 'my recipe.yaml'",
        ),
        (
            [[PYTHON, "/v/bin/torchrun", "--nproc_per_node", "2", *SCRIPT]],
            "torchrun --nproc_per_node 2 trainers/grpo.py --config 'my recipe.yaml'",
        ),
        (
            [[PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "2", *SCRIPT]],
            "python3.11 -m torch.distributed.run --nproc-per-node 2 trainers/grpo.py --config 'my recipe.yaml'",
        ),
        (
            [[PYTHON, "-m", "deepspeed.launcher.launch", *SCRIPT], [PYTHON, "/v/bin/accelerate", "launch", *SCRIPT]],
            "accelerate launch trainers/grpo.py --config 'my recipe.yaml'",
        ),
        ([[PYTHON, "other.py"], [PYTHON, "/v/bin/accelerate", "launch", *SCRIPT]], None),
        ([["timeout", "60", PYTHON, *SCRIPT]], None),
    ],
)
def test_the_command_is_the_launchers(above, expected):
    assert launched_command([OWN, *above]) == (expected or "python3.11 -u trainers/grpo.py --config 'my recipe.yaml'")


@pytest.mark.parametrize("started", [["/v/bin/vlm-posttrain"], ["-m", "vlm_posttrain"], ["-u", "-m", "vlm_posttrain"]])
def test_the_one_command_is_itself(started):
    words = ["grpo", "--config", "my recipe.yaml", "--launch", "zero3"]
    above = [[PYTHON, "-m", "vlm_posttrain.accelerate_process", "--module", "vlm_posttrain", *words]]
    expected = "vlm-posttrain grpo --config 'my recipe.yaml' --launch zero3"
    assert launched_command([[PYTHON, *started, *words], *above]) == expected


def test_the_command_of_this_process_is_recorded(run_command):
    code = "import sys; from trainers.run.machine import command_line; print(command_line())"
    assert run_command("-c", code, "a b").stdout.strip().endswith("'a b'")


def test_the_machine_has_a_name_and_cores():
    assert cpu_name()
    assert usable_cores() >= 1


# -- T13: every reader of stored lines --------------------------------------------------------------------------------

SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_t13_rows_of_data_are_read_whole(separator, tmp_path):
    from data.io.records import read_rows, write_jsonl

    rows = [{"id": 1, "text": f"a{separator}b"}, {"id": 2, "text": "c"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [row for _, row in read_rows(tmp_path / "rows.jsonl")] == rows


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_t13_a_tokenizers_corpus_is_read_whole(separator, tmp_path):
    from models.tiny import _read_corpus

    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": f"a{separator}b"}, ensure_ascii=False) + "\n", "utf-8")
    assert f"a{separator}b" in _read_corpus(tmp_path / "corpus.jsonl")


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_t13_stored_rows_of_long_work_are_read_whole(separator, tmp_path):
    from data.io.shards import ShardStore

    with ShardStore(tmp_path, {}) as store:
        store.append({"id": 1, "text": f"a{separator}b"})
    with (tmp_path / "shard-00000.jsonl").open("ab") as file:
        file.write('{"id": 2, "text": "caf\u00e9'.encode()[:-1])  # killed inside a letter
    with ShardStore(tmp_path, {}) as store:
        assert store.done == {1}
        store.append({"id": 2, "text": "whole"})
    lines = (tmp_path / "shard-00000.jsonl").read_bytes().split(b"\n")[:-1]
    assert [json.loads(line)["text"] for line in lines] == [f"a{separator}b", "whole"]


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_t13_stored_answers_are_read_whole(separator, tmp_path):
    from models.served.answer_files import stored_lines

    path = tmp_path / "answers-0.jsonl"
    rows = [{"key": 1, "text": f"a{separator}b"}, {"key": 2, "text": "c"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode() + b'{"key": 3, "te\xe2\x80')
    assert [row for _, row in stored_lines(path)] == rows
