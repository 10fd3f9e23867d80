"""Adapters of modules that the model does not have are refused before anything is loaded."""

from pathlib import Path

import pytest
from refused_recipes import chat_rows, refusal
from stored_groups import write_completion_groups

# -- T8: adapters of modules that the model does not have -------------------------------------------------------------

LINEAR = "down_proj, fc1, fc2, gate_proj, k_proj, lm_head, o_proj, proj, q_proj, qkv, up_proj, v_proj"
WRONG_TARGETS = [
    ({"lora_target_modules": ["q_prj", "v_proj"]}, "lora_target_modules: 'q_prj' names no module of {model}; "
     "did you mean 'q_proj'"),
    ({"lora_target_modules": ["query_key"]}, "lora_target_modules: 'query_key' names no module of {model}; "),
    ({"lora_target_modules": [r".*\.self_attn\.[qk]_prj"]}, r"lora_target_modules: '.*\.self_attn\.[qk]_prj' names "),
    ({"lora_target_modules": ["(q_proj"]}, "lora_target_modules: '(q_proj' is no regular expression: "),
    ({"lora_target_modules": ["mlp"]}, "lora_target_modules: 'mlp' names 'model."),
    ({"lora_target_modules": ["qkv", "q_proj"], "freeze_vision_tower": True}, "lora_target_modules: 'qkv' names only "
     "modules that get no adapters here (frozen, or trained in full) of {model}; expected all-linear, some of "),
    ({"lora_modules_to_save": ["embed_token"]}, "lora_modules_to_save: 'embed_token' is no name in {model}; "
     "did you mean 'embed_tokens'"),
    ({"lora_target_parameters": ["gate.weigth"]}, "lora_target_parameters: 'gate.weigth' is no name in {model}; "),
]  # fmt: skip
TAKE_LORA = {
    "grpo": "Qwen2VLForConditionalGeneration",
    "sft": "Qwen2VLForConditionalGeneration",
    "rce": "Qwen2VLForConditionalGeneration",
    "offline_grpo": "Qwen2VLForConditionalGeneration",
    "reward": "Qwen2VLForRewardModel",
}


def _on_vlm(method: str, folder: Path, model: Path) -> dict:
    """Keys that make a recipe of stored groups one of a VLM."""
    if method not in ("rce", "offline_grpo"):
        return {}
    rows = [{"prompt": row["prompt"], "gold": "an answer of some words", "images": []} for row in chat_rows(4)]
    groups = write_completion_groups(folder / "completions", rows)
    tables = {"query_table": "leave out", "example_table": "leave out", "selector": "leave out"}
    return {"policy": "vlm", "dataset_name": str(groups), "model_name_or_path": str(model), **tables}


@pytest.mark.parametrize("method", TAKE_LORA)
def test_t08_adapters_of_modules_that_do_not_exist(run, tmp_path, tiny_model, method):
    vlm = _on_vlm(method, tmp_path, tiny_model)
    for keys, expected in WRONG_TARGETS if method == "grpo" else WRONG_TARGETS[:2]:
        message = refusal(run(method, use_peft=True, **vlm, **keys))
        assert message.startswith(f"error: {expected.format(model=TAKE_LORA[method])}")
        if "query_key" in str(keys) and method != "reward":
            known = f"expected all-linear, some of {LINEAR}, or one pattern of names such as "
            assert f"{known}model.visual.blocks.0.attn.qkv" in message


@pytest.mark.parametrize("method", TAKE_LORA)
@pytest.mark.parametrize("targets", [["q_proj"], ["fc1", "q_proj"], [r".*language_model.*\.(q|v)_proj"]], ids=str)
def test_t08_adapters_of_modules_that_exist(run, tmp_path, tiny_model, method, targets):
    vlm = _on_vlm(method, tmp_path, tiny_model)
    status, printed = run(method, use_peft=True, lora_target_modules=targets, **vlm)
    assert status == 0, printed


def test_t08_one_name_is_a_name_as_in_a_longer_list():
    from trl import ModelConfig

    from trainers.setup.model import lora_config

    assert lora_config(ModelConfig(use_peft=True, lora_target_modules=["q_proj"]), False).target_modules == {"q_proj"}
    pattern = ModelConfig(use_peft=True, lora_target_modules=[r".*q_proj"])
    assert lora_config(pattern, False).target_modules == r".*q_proj"


# -- mixtures of experts, whose weights are no linear layers ----------------------------------------------------------


def test_what_adapters_and_quantisation_leave_of_experts_is_said(run, tiny_family):
    mixture = {"model_name_or_path": str(tiny_family("qwen3_vl_moe")), "use_peft": True}
    parameters = ["experts.down_proj", "experts.gate_up_proj"]
    named = f"lora_target_parameters: [{', '.join(parameters)}] puts some on them"
    status, printed = run("grpo", load_in_4bit=True, **mixture)
    assert status == 0, printed
    assert f"note: adapters of linear layers leave out the weights of experts (13% of all); {named}" in printed
    assert "note: bitsandbytes quantises linear layers, and leaves the weights of experts (13% of all)" in printed
    status, printed = run("grpo", lora_target_parameters=parameters, lora_dropout=0, **mixture)
    assert status == 0, printed
    assert "experts" not in printed


def test_experts_are_no_layer_for_adapters(run, tiny_family):
    mixture = {"model_name_or_path": str(tiny_family("qwen3_vl_moe")), "use_peft": True}
    message = refusal(run("grpo", lora_target_modules=["experts"], **mixture))
    assert message.endswith("expected lora_target_parameters: [experts.gate_up_proj, experts.down_proj]")
