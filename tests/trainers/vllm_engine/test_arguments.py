"""`vllm_kwargs`: what a recipe may say of the engine, and who sets the rest."""

import pytest

from trainers.grpo import GRPOConfig
from trainers.vllm_engine.arguments import server_flags


def config(tmp_path, given, **settings):
    defaults = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "use_vllm": True}
    return GRPOConfig(**{**defaults, "vllm_kwargs": given, **settings})


def test_a_mapping_is_kept_and_json_of_a_command_line_is_read(tmp_path):
    assert config(tmp_path, {"dtype": "float16"}).vllm_kwargs == {"dtype": "float16"}
    assert config(tmp_path, '{"max_num_seqs": 4}').vllm_kwargs == {"max_num_seqs": 4}
    assert config(tmp_path, None).vllm_kwargs is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size: the trainer sets it; set vllm_tensor_parallel_size in"),
        ({"max_model_len": 99}, "max_model_len: the trainer sets it; set vllm_max_model_length in its place"),
        ({"model": "x"}, "model: the trainer sets it; set model_name_or_path in its place"),
        ({"seed": 3}, "seed: the trainer sets it; set seed in its place"),
        ({"logprobs_mode": "raw_logprobs"}, "logprobs_mode: cannot be set, because the trainer compares itself"),
        ({"mm_processor_kwargs": {"max_pixels": 9}}, "max_pixels: rollout and update must see images of one size"),
        ("dtype=float16", "expected a mapping, found 'dtype=float16'"),
        ("{dtype: 1}", "expected a mapping as JSON"),
    ],
)
def test_what_others_set_is_refused(tmp_path, given, expected):
    with pytest.raises(ValueError, match=f"vllm_kwargs: .*{expected}|vllm_kwargs: {expected}"):
        config(tmp_path, given)


def test_without_vllm_they_wait_as_all_its_settings_do(tmp_path):
    assert config(tmp_path, {"dtype": "float16"}, use_vllm=False).vllm_kwargs == {"dtype": "float16"}


def test_the_engine_of_a_server_is_its_own(tmp_path):
    with pytest.raises(ValueError, match="vllm_mode: server .* start the server with --dtype float16 --enforce-eager"):
        config(tmp_path, {"dtype": "float16", "enforce_eager": True}, vllm_mode="server")


def test_flags_of_a_server():
    given = {"enable_prefix_caching": False, "max_num_seqs": 8, "speculative_config": {"method": "ngram"}}
    expected = '--no-enable-prefix-caching --max-num-seqs 8 --speculative-config \'{"method": "ngram"}\''
    assert server_flags(given) == expected
    assert server_flags({"chat_template": "a b.jinja", "limits": {"it's": 1}}) == (
        """--chat-template 'a b.jinja' --limits '{"it'"'"'s": 1}'"""
    )
