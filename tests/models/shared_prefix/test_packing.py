"""Shared prompts: the same values and gradients as the plain way, and what cannot be exact is found out."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from prefix_cases import (
    MIXED,
    TOLERANCE,
    Batch,
    Prompt,
    as_rows,
    assert_same,
    batches,
    both_ways,
    checkpointing,
    plain_log_probs,
    tiny_qwen2_5_vl,
    tiny_qwen2_vl,
    tiny_qwen3_vl,
    write,
)
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from models.shared_prefix.packing import continuation_log_probs, pack_continuations
from models.shared_prefix.sharing import reason_not_shared

MAKERS = {"qwen2": tiny_qwen2_vl, "qwen2.5": tiny_qwen2_5_vl, "qwen3": tiny_qwen3_vl}


@cache
def cached_model(family: str, attention: str) -> nn.Module:
    return MAKERS[family](attention).train()


@settings(max_examples=200)
@given(
    batch=batches(),
    family=st.sampled_from(list(MAKERS)),
    attention=st.sampled_from(["sdpa", "eager"]),
    kind=st.sampled_from(["off", "reentrant", "not reentrant"]),
)
def test_values_and_gradients_are_those_of_the_plain_way(batch, family, attention, kind):
    model = cached_model(family, attention)
    checkpointing(model, kind)
    assert reason_not_shared(model) is None
    assert_same(*both_ways(model, batch))


@pytest.mark.parametrize("kind", ["off", "reentrant", "not reentrant"])
def test_adapters_learn_the_same(kind):
    torch.manual_seed(0)
    model = get_peft_model(tiny_qwen2_vl(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.train()
    checkpointing(model, kind)
    assert reason_not_shared(model) is None
    plain, shared = both_ways(model, MIXED)
    assert plain[1]
    assert all("lora" in name for name in plain[1])
    assert_same(plain, shared)


def test_with_adapters_off_values_are_the_base_models():
    torch.manual_seed(0)
    model = get_peft_model(tiny_qwen2_vl(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    inputs, width, images, prompts = write(MIXED, model.get_base_model())
    batch = pack_continuations(model, as_rows(model, inputs, images, prompts), width)
    with torch.no_grad():
        adapted, _ = continuation_log_probs(model, batch)
        with model.disable_adapter():
            base, _ = continuation_log_probs(model, batch)
            plain = plain_log_probs(model, inputs, width, prompts)
    assert (adapted - base).abs().max() > 1e-2
    assert (base - plain).abs().max() <= TOLERANCE


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_no_further_from_float32_than_the_plain_way(autocast):
    distances = []
    for seed in range(8):
        exact = tiny_qwen2_vl(seed=seed)
        inputs, width, images, prompts = write(MIXED, exact)
        with torch.no_grad():
            right = plain_log_probs(exact, inputs, width, prompts)
            model = exact if autocast else tiny_qwen2_vl(seed=seed).bfloat16()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                batch = pack_continuations(model, as_rows(model, inputs, images, prompts), width)
                shared, _ = continuation_log_probs(model, batch)
                plain = plain_log_probs(model, inputs, width, prompts)
        distances.append([(values - right).abs().mean().item() for values in (shared, plain)])
    ours, theirs = (sum(values) for values in zip(*distances, strict=True))
    assert 0 < ours <= 1.05 * theirs


def test_entropies():
    model = tiny_qwen2_vl()
    inputs, width, images, prompts = write(MIXED, model)
    batch = pack_continuations(model, as_rows(model, inputs, images, prompts), width)
    with torch.no_grad():
        _, entropies = continuation_log_probs(model, batch, entropies=True)
        # Of row 3, whose continuation of 5 tokens has its prompt before it without padding between.
        start = inputs["input_ids"].shape[1] - width
        probabilities = model(**inputs).logits[3, start - 1 : start + 4].softmax(dim=1)
    expected = -(probabilities * probabilities.log()).sum(dim=1)
    torch.testing.assert_close(entropies[3, :5], expected, atol=TOLERANCE, rtol=0)
    assert (entropies[3, 5:] == 0).all()
    assert (entropies[4] == 0).all()


def test_each_prompt_and_image_is_computed_once():
    model = tiny_qwen2_vl()
    inputs, width, images, prompts = write(MIXED, model)
    packed = pack_continuations(model, as_rows(model, inputs, images, prompts), width).packed
    beginnings = sum(size - 1 for size in dict.fromkeys(prompts))
    assert packed.layout.tokens == beginnings + sum(size for _, size in MIXED.rows)
    assert len(packed.inputs["image_grid_thw"]) == 3  # of 8 in the rows
    seen = []
    model.model.visual.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    continuation_log_probs(model, pack_continuations(model, as_rows(model, inputs, images, prompts), width))
    assert [len(kwargs["grid_thw"]) for kwargs in seen] == [3]


def test_two_prompts_about_one_image_encode_it_once():
    batch = Batch((Prompt((3, 5), ((4, 4),), 1), Prompt((3, 6), ((4, 4),), 1)), ((0, 2), (1, 3), (1, 2)), 0, 0)
    model = tiny_qwen2_vl()
    inputs, width, images, prompts = write(batch, model)
    rows = as_rows(model, inputs, images, prompts)
    assert rows.images == [[0], [0], [0]]
    assert len(rows.different) == 1
    assert_same(*both_ways(model, batch))


def test_prompts_that_do_not_repeat_go_the_plain_way():
    batch = Batch((Prompt((3, 5), ((4, 4),), 1), Prompt((3, 5), ((4, 4),), 2)), ((0, 2), (1, 3)), 0, 0)
    model = tiny_qwen2_vl()
    inputs, width, images, prompts = write(batch, model)
    assert pack_continuations(model, as_rows(model, inputs, images, prompts), width) is None


# -- what cannot be exact ---------------------------------------------------------------------------------------------


def test_dropout_counts_in_training_only():
    model = get_peft_model(tiny_qwen2_vl(), LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"]))
    assert "dropout of 0.1" in reason_not_shared(model.train())
    assert reason_not_shared(model.eval()) is None
    attention = tiny_qwen2_vl().train()
    for layer in attention.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.2
    assert "attention dropout of 0.2" in reason_not_shared(attention)


def test_unknown_models_are_named():
    text = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    assert "Qwen2ForCausalLM" in reason_not_shared(text)
    model = tiny_qwen2_vl()
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in reason_not_shared(model)
    sliding = tiny_qwen2_vl()
    sliding.model.language_model.config.layer_types = ["full_attention", "sliding_attention"]
    assert "sliding window" in reason_not_shared(sliding)
    virtual = get_peft_model(tiny_qwen2_vl(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "before the prompt" in reason_not_shared(virtual)
