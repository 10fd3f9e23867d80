"""What the loop would not do as `generate` does is refused, with the reason."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from prefix_cases import tiny_qwen2_vl
from rollout_cases import spread_model
from torch import nn
from transformers import DynamicCache, GenerationConfig, GPT2Config, GPT2LMHeadModel, TextStreamer

from models.decoding import reasons
from models.decoding.reasons import reason_not_rolled_out

DONE = {
    "nothing": {},
    "sampling": {"do_sample": True, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "temperature": 0.7},
    "greedy": {"do_sample": False, "num_beams": 1, "top_k": 50},
    "processors": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "suppress_tokens": [3], "min_new_tokens": 2},
    "ends": {"eos_token_id": [3, 4], "max_time": 5.0, "max_new_tokens": 3},
    "a dynamic cache": {"cache_implementation": "dynamic", "use_cache": True},
    "guidance of nothing": {"guidance_scale": 1.0},
    "several completions": {"num_return_sequences": 4},
    "a configuration": {"generation_config": GenerationConfig(do_sample=True)},
}
REFUSED = {
    "beams": ({"num_beams": 3}, "beam search"),
    "sampled beams": ({"num_beams": 3, "do_sample": True}, "beam sample"),
    "beams of a configuration": ({"generation_config": GenerationConfig(num_beams=2)}, "beam search"),
    "contrastive search": ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
    "look-up in the prompt": ({"prompt_lookup_num_tokens": 3}, "assisted generation"),
    "early exit": ({"assistant_early_exit": 1}, "assisted generation"),
    "dola": ({"dola_layers": "high"}, "dola generation"),
    "an assistant": ({"assistant_model": object()}, "assistant_model"),
    "a streamer": ({"streamer": TextStreamer(None)}, "streamer"),
    "another loop": ({"custom_generate": print}, "custom_generate"),
    "allowed tokens": ({"prefix_allowed_tokens_fn": lambda *_: [1]}, "prefix_allowed_tokens_fn"),
    "a cache": ({"past_key_values": DynamicCache()}, "past_key_values"),
    "embeddings": ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds"),
    "stop strings": ({"stop_strings": ["end"], "tokenizer": object()}, "stop_strings: ['end']"),
    "guidance": ({"guidance_scale": 1.5}, "guidance_scale: 1.5"),
    "a static cache": ({"cache_implementation": "static"}, "cache_implementation: static"),
    "no cache": ({"use_cache": False}, "use_cache: False"),
    "parts of prompts": ({"prefill_chunk_size": 8}, "prefill_chunk_size: 8"),
    "healing": ({"token_healing": True}, "token_healing: True"),
    "a dict": ({"return_dict_in_generate": True, "output_logits": True}, "return_dict_in_generate: True"),
    "equal steps": ({"synced_gpus": True}, "synced_gpus: True"),
    "one of a configuration": ({"generation_config": GenerationConfig(stop_strings="x")}, "stop_strings: x"),
}


@pytest.mark.parametrize("name", DONE)
def test_what_the_loop_does_has_no_reason_against_it(name):
    assert reason_not_rolled_out(spread_model("qwen2_vl"), DONE[name]) is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_is_named(name):
    arguments, reason = REFUSED[name]
    assert reason_not_rolled_out(spread_model("qwen2_vl"), arguments) == reason


def test_arguments_hold_before_a_configuration_before_the_models_own(monkeypatch):
    model = spread_model("qwen2_vl")
    own = GenerationConfig(num_beams=2)
    monkeypatch.setattr(model, "generation_config", own)
    assert reason_not_rolled_out(model, {}) == "beam search"
    assert reason_not_rolled_out(model, {"generation_config": GenerationConfig(num_beams=1)}) is None
    assert reason_not_rolled_out(model, {"num_beams": 1}) is None
    twice = {"generation_config": GenerationConfig(num_beams=1), "num_beams": 3}
    assert reason_not_rolled_out(model, twice) == "beam search"


def with_lora(dropout: float) -> nn.Module:
    return get_peft_model(tiny_qwen2_vl(), LoraConfig(target_modules=["q_proj"], lora_dropout=dropout))


def test_dropout_that_is_active():
    model = with_lora(0.1)
    assert "dropout of 0.1" in reason_not_rolled_out(model.train(), {})
    assert reason_not_rolled_out(model.eval(), {}) is None
    assert reason_not_rolled_out(with_lora(0.0).train(), {}) is None


def test_adapters_that_put_tokens_before_the_prompt():
    tuning = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2, token_dim=32, num_layers=2)
    tuning.num_transformer_submodules = 1
    model = tiny_qwen2_vl()
    model.peft_config = {"default": tuning}
    assert "before the prompt" in reason_not_rolled_out(model, {})


def test_models_of_other_families():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20))
    assert "GPT2LMHeadModel" in reason_not_rolled_out(model, {})


def test_an_attention_that_takes_no_such_mask():
    model = tiny_qwen2_vl()
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in reason_not_rolled_out(model, {})


def test_weights_that_processes_share(monkeypatch):
    model = spread_model("qwen2_vl")
    with monkeypatch.context() as patch:
        patch.setattr(reasons, "is_deepspeed_zero3_enabled", lambda: True)
        assert "ZeRO-3" in reason_not_rolled_out(model, {})
        assert reason_not_rolled_out(model, {}, gathered=True) is None
    with monkeypatch.context() as patch:
        patch.setattr(reasons, "is_fsdp_managed_module", lambda _: True)
        assert "FSDP" in reason_not_rolled_out(model, {})
    with monkeypatch.context() as patch:
        patch.setattr(model, "hf_device_map", {"a": 0, "b": 1, "c": 1}, raising=False)
        assert reason_not_rolled_out(model, {}) == "a model on 2 devices"
        patch.setattr(model, "hf_device_map", {"a": 0, "b": 0})
        assert reason_not_rolled_out(model, {}) is None
