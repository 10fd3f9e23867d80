"""The memory estimate: exact counts of weights, and the effect of every setting on its part."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from models.families.published import PUBLISHED_SHAPES, published_config
from models.families.vision_hooks import vision_tower
from trainers.setup import memory
from trainers.setup.memory import (
    DEVICE_OVERHEAD,
    FRAGMENTATION,
    MemoryDemand,
    count_parameters,
    estimate_memory,
    format_estimate,
)

SMALL = "Qwen/Qwen2-VL-2B-Instruct"
FULL = MemoryDemand(rows=2, generated_rows=4, prompt_tokens=1000, completion_tokens=100, visual_tokens=100)


ONE_OF_EACH = list({model_type: name for name, (model_type, _) in reversed(PUBLISHED_SHAPES.items())}.values())
"""The first that is listed of each model type."""
OTHERS = ["Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-72B-Instruct"]


@pytest.fixture(scope="module")
def counted():
    """Configurations of all known models, and parameter counts of some, counted once."""
    configs = {name: published_config(name) for name in PUBLISHED_SHAPES}
    return configs, {name: count_parameters(configs[name]) for name in [*ONE_OF_EACH, *OTHERS]}


@pytest.fixture
def estimate(counted, monkeypatch):
    """Function: load and name of a known model -> estimate."""
    configs, counts = counted
    by_config = {id(configs[name]): count for name, count in counts.items()}
    monkeypatch.setattr(memory, "count_parameters", lambda config: by_config[id(config)])
    return lambda load, name=SMALL: estimate_memory(configs[name], load)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return AutoModelForImageTextToText.from_pretrained(tiny_model)


def test_counts_are_those_of_the_real_model(tiny, tiny_model):
    counts = count_parameters(AutoConfig.from_pretrained(tiny_model))
    parameters = dict(tiny.named_parameters())
    assert counts.total == sum(parameter.numel() for parameter in parameters.values())
    assert counts.vision == sum(value.numel() for name, value in parameters.items() if ".visual." in name)
    linear = [
        v.numel() for name, v in parameters.items() if v.ndim == 2 and name.endswith("weight") and "embed" not in name
    ]
    assert (counts.linear, counts.largest_linear) == (sum(linear), max(linear))


@pytest.mark.parametrize("freeze_vision", [False, True])
def test_adapters_are_as_many_as_peft_makes(tiny_model, freeze_vision):
    config = AutoConfig.from_pretrained(tiny_model)
    counts = count_parameters(config)
    exclude = r".*\bvisual\..*" if freeze_vision else None
    lora = LoraConfig(r=4, target_modules="all-linear", exclude_modules=exclude)
    adapted = get_peft_model(AutoModelForImageTextToText.from_pretrained(tiny_model), lora)
    trainable, _ = adapted.get_nb_trainable_parameters()
    parts = estimate_memory(config, MemoryDemand(lora_rank=4, freeze_vision=freeze_vision, dtype="float32"))
    assert trainable == 4 * (counts.adapter_widths + (0 if freeze_vision else counts.vision_adapter_widths))
    assert parts["gradients"] == 4 * trainable
    assert parts["optimizer"] == 8 * trainable


def test_full_training_by_hand(estimate, counted):
    total = counted[1][SMALL].total
    parts = estimate(FULL)
    assert parts["weights"] == 2 * total
    assert parts["gradients"] == 2 * total
    assert parts["optimizer"] == 8 * total
    assert parts["reference"] == 0
    assert parts["overhead"] == DEVICE_OVERHEAD
    # 4 rows of 1,100 tokens; 28 layers, keys and values of 2 heads with 128 values, 2 bytes each
    cache = 4 * 1100 * 28 * 2 * 2 * 128 * 2
    prefill = 4 * 1000 * (4 * 1536 + 3 * 8960) * 2
    logits = 4 * 151936 * 3 * 4
    assert parts["generation"] == cache + prefill + logits
    static = sum(parts[name] for name in ("weights", "gradients", "optimizer", "overhead"))
    assert parts["peak"] == (static + max(parts["training activations"], parts["generation"])) * FRAGMENTATION


def tensors_of(values) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values] if values.is_floating_point() else []
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    return [tensor for value in inner for tensor in tensors_of(value)]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_5", "gemma3", "gemma4"])
def test_a_rows_cache_is_as_large_as_the_real_one(tiny_family, family):
    model = AutoModelForImageTextToText.from_pretrained(tiny_family(family), dtype=torch.float32).eval()
    text = model.config.get_text_config()
    cache = DynamicCache(config=text)
    with torch.no_grad():
        model(input_ids=torch.full((1, 40), 7), cache=cache, use_cache=True)
    kept = sum(torch.numel(tensor) for layer in cache.layers for tensor in tensors_of(vars(layer)))
    # A sliding window keeps one token less between two steps than it sees.
    assert memory.row_cache(text, 40) == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize(
    ("name", "tokens"),  # of an image of fixed size, as processors and papers have them
    [
        ("OpenGVLab/InternVL3-1B-hf", 256),
        ("google/gemma-3-4b-it", 256),
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 81),
        ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 64),
        ("HuggingFaceM4/Idefics3-8B-Llama3", 169),
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 729),
    ],
)
def test_patches_of_a_visual_token(counted, name, tokens):
    config = counted[0][name]
    sides = (config.vision_config.image_size, config.vision_config.patch_size)
    image, patch = (side if isinstance(side, int) else side[0] for side in sides)
    assert (image // patch) ** 2 / memory.patches_per_token(config) == tokens


def test_patches_that_are_merged_or_pooled_by_squares(counted):
    names = ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3.5-4B", "google/gemma-4-E2B-it")
    assert [memory.patches_per_token(counted[0][name]) for name in names] == [4, 4, 4, 9]


def test_a_mixture_of_experts_works_with_the_experts_of_a_token(counted):
    text = counted[0]["google/gemma-4-26B-A4B-it"].get_text_config()
    assert memory.intermediate_size(text) == 2112 + 8 * 704  # one that all tokens go through, and eight of 128
    shared = SimpleNamespace(num_experts_per_tok=8, moe_intermediate_size=512, shared_expert_intermediate_size=384)
    assert memory.intermediate_size(shared) == 8 * 512 + 384
    assert memory.intermediate_size(SimpleNamespace(intermediate_size=100)) == 100


def test_layers_that_share_keys_and_values_keep_none(counted):
    """Gemma 4: 15 of 35 layers keep something, each fifth of them all tokens, with heads of twice the width."""
    text = counted[0]["google/gemma-4-E2B-it"].get_text_config()
    assert memory.row_cache(text, 2000) == 2 * (12 * 512 * 256 + 3 * 2000 * 512)


def test_states_of_linear_attention_do_not_grow_with_the_text():
    text = SimpleNamespace(
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_num_value_heads=4,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
    )
    # 4 heads of 8 x 16, and 4 columns of the convolution over queries, keys (2 x 8 each) and values (4 x 16)
    assert {memory.values_kept(text, "linear_attention", tokens) for tokens in (1, 9999)} == {512 + 4 * 96}


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "gemma4"])
def test_parameters_of_other_families(tiny_family, family):
    counts = count_parameters(AutoConfig.from_pretrained(tiny_family(family)))
    model = AutoModelForImageTextToText.from_pretrained(tiny_family(family))
    assert counts.total == model.num_parameters()
    assert counts.vision == sum(value.numel() for value in vision_tower(model).parameters())
    assert estimate_memory(model.config, FULL)["training activations"] > 0


def test_weights_follow_their_type(estimate, counted):
    parameters = counted[1][SMALL]
    assert estimate(replace(FULL, dtype="float32"))["weights"] == 4 * parameters.total
    four_bit = estimate(replace(FULL, four_bit=True, lora_rank=8, freeze_vision=True))["weights"]
    adapters = 8 * parameters.adapter_widths * 4  # float32
    # 4 bits and a constant of 8 bits for 64 weights, which has a constant of 32 bits for 256
    quantised = parameters.linear * (4 / 8 + 1 / 64 + 4 / 64 / 256)
    assert four_bit == pytest.approx(quantised + 2 * parameters.other + adapters)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_zero_divides_what_its_stage_shards(estimate, counted, zero_stage):
    total = counted[1][SMALL].total
    parts = estimate(replace(FULL, processes=8, zero_stage=zero_stage, reference=True))
    weights = 2 * total / (8 if zero_stage == 3 else 1)
    master = 4 if zero_stage else 0  # ZeRO keeps weights in float32 beside those in bfloat16
    assert parts["weights"] == parts["reference"] == weights
    assert parts["gradients"] == 2 * total / (8 if zero_stage >= 2 else 1)
    assert parts["optimizer"] == (8 + master) * total / (8 if zero_stage else 1)


def test_offloading_leaves_two_layers_on_the_device(estimate, counted):
    parts = estimate(replace(FULL, processes=2, zero_stage=3, offload=True))
    assert (parts["gradients"], parts["optimizer"]) == (0, 0)
    assert parts["weights"] == 4 * counted[1][SMALL].largest_linear


def test_a_frozen_vision_tower_has_no_gradients(estimate, counted):
    parameters = counted[1][SMALL]
    parts = estimate(replace(FULL, freeze_vision=True))
    assert parts["gradients"] == 2 * (parameters.total - parameters.vision)
    assert parts["weights"] == 2 * parameters.total


def test_an_optimizer_in_eight_bits_takes_a_quarter(estimate):
    assert estimate(replace(FULL, optimizer_bytes=2))["optimizer"] == estimate(FULL)["optimizer"] / 4


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_adapters_take_less_than_full_training_and_four_bits_less_still(estimate, name):
    full, lora, qlora = (
        estimate(load, name)["peak"]
        for load in (FULL, replace(FULL, lora_rank=16), replace(FULL, lora_rank=16, four_bit=True))
    )
    assert full > lora > qlora > 0


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("rows", "training activations"),
        ("prompt_tokens", "training activations"),
        ("completion_tokens", "training activations"),
        ("visual_tokens", "training activations"),
        ("generated_rows", "generation"),
        ("prompt_tokens", "generation"),
        ("completion_tokens", "generation"),
    ],
)
def test_the_estimate_grows_with_the_batch(estimate, field, part):
    sizes = [getattr(FULL, field) * factor for factor in (1, 2, 4, 8)]
    parts = [estimate(replace(FULL, **{field: size}))[part] for size in sizes]
    assert parts == sorted(set(parts))


@pytest.mark.parametrize("field", ["lora_rank", "rows", "generated_rows", "prompt_tokens", "completion_tokens"])
def test_the_peak_never_falls_when_more_is_asked_for(estimate, field):
    start = replace(FULL, lora_rank=8)
    peaks = [estimate(replace(start, **{field: getattr(start, field) * factor}))["peak"] for factor in (1, 4, 64)]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1]


def test_gradient_checkpointing_saves_activations(estimate):
    saved = estimate(FULL)["training activations"]
    assert estimate(replace(FULL, checkpointing=False))["training activations"] > 3 * saved


def test_vllm_takes_generation_elsewhere(estimate):
    parts = estimate(replace(FULL, vllm_share=0.3))
    assert parts["generation"] == 0
    said = format_estimate(parts, replace(FULL, vllm_share=0.3)).splitlines()[-1]
    assert (
        said == f"  vLLM takes 30% of the device beside it; its weights and one row need {parts['vLLM'] / 1e9:.2f} GB"
    )


def test_vllm_needs_its_weights_and_one_row(estimate, counted):
    _, counts = counted
    text = published_config(SMALL).get_text_config()
    head = text.hidden_size // text.num_attention_heads
    row = 1100 * text.num_hidden_layers * 2 * text.num_key_value_heads * head
    needed = {dtype: (counts[SMALL].total + row) * size for dtype, size in (("bfloat16", 2), ("float32", 4))}
    for dtype, expected in needed.items():
        load = replace(FULL, vllm_share=0.3, vllm_dtype=dtype)
        assert estimate(load)["vLLM"] == expected
        assert estimate(replace(load, vllm_processes=2))["vLLM"] == expected / 2
    assert "vLLM" not in estimate(FULL)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_known_model_can_be_estimated(estimate, name):
    adapters = [{}, {"lora_rank": 8}, {"lora_rank": 8, "four_bit": True, "freeze_vision": True}]
    for dtype, zero_stage, fields in product(["float32", "bfloat16", "float16"], [0, 2, 3], adapters):
        load = replace(FULL, dtype=dtype, zero_stage=zero_stage, processes=4, reference=not fields, **fields)
        parts = estimate(load, name)
        assert all(size >= 0 for size in parts.values())
        assert parts["peak"] > parts["weights"] + parts["overhead"]


def test_larger_models_take_more(estimate):
    names = ["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"]
    peaks = [estimate(FULL, name)["peak"] for name in [*names, "Qwen/Qwen2-VL-72B-Instruct"]]
    assert peaks == sorted(set(peaks))


def test_the_text_names_every_part_in_gigabytes():
    parts = {"weights": 4.418e9, "gradients": 0.0, "peak": 5.5e9}
    assert format_estimate(parts, MemoryDemand(processes=2)).splitlines() == [
        "memory estimate for each of 2 device(s):",
        "  weights                   4.42 GB",
        "  gradients                 0.00 GB",
        "  peak                      5.50 GB (training and generation take turns)",
    ]
