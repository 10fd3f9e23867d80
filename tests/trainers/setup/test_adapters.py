"""LoRA and 4-bit QLoRA on the CPU: a step moves the adapters alone, and what was saved gives the same logits."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from models.families.vision_hooks import vision_tower
from trainers.setup.model import lora_config

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture(autouse=True)
def plain_four_bit_kernels(monkeypatch):
    """On CPUs with AVX-512 BF16, bitsandbytes packs the weights of a model that generates: its scales are rounded, and
    a layer that is not a multiple of 64 wide, as those of the tiny model, raises."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def logits_of(model, batch) -> torch.Tensor:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    images = {key: batch[key] for key in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
    # Asked for by name: TRL replaces `forward` of the model that it trains.
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        return type(plain).forward(plain.eval(), input_ids=ids, attention_mask=mask, **images).logits


@pytest.mark.parametrize("quantization", [None, NF4], ids=["lora", "qlora"])
def test_adapters_learn_alone_and_come_back_equal(make_grpo, tiny_model, tmp_path, quantization):
    trainer = make_grpo(
        init={"peft_config": LoraConfig(**LORA), "quantization_config": quantization}, max_steps=1, learning_rate=1e-2
    )
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not value.equal(before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    batch = trainer._buffered_inputs[0]
    expected = logits_of(trainer.model, batch)
    trainer.save_model(str(tmp_path / "saved"))
    base = AutoModelForImageTextToText.from_pretrained(
        str(tiny_model), dtype=torch.float32, quantization_config=quantization
    )
    plain = logits_of(base, batch)
    reloaded = logits_of(PeftModel.from_pretrained(base, str(tmp_path / "saved")), batch)
    torch.testing.assert_close(reloaded, expected, atol=1e-6, rtol=1e-6)
    assert (reloaded - plain).abs().max() > 1e-3


def test_full_model_comes_back_equal(make_grpo, tmp_path):
    trainer = make_grpo(max_steps=1)
    trainer.train()
    batch = trainer._buffered_inputs[0]
    expected = logits_of(trainer.model, batch)
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = AutoModelForImageTextToText.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(logits_of(reloaded, batch), expected)


def test_a_frozen_vision_tower_gets_no_adapters(make_grpo):
    from trl import ModelConfig

    recipe = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["all-linear"])
    with_tower = make_grpo(init={"peft_config": lora_config(recipe, freeze_vision_tower=False)}, max_steps=1)
    assert any("lora_" in name for name, _ in vision_tower(with_tower.model).named_parameters())
    frozen = make_grpo(
        init={"peft_config": lora_config(recipe, freeze_vision_tower=True)}, max_steps=1, freeze_vision_tower=True
    )
    assert not any("lora_" in name for name, _ in vision_tower(frozen.model).named_parameters())
    assert any("lora_" in name for name, value in frozen.model.named_parameters() if value.requires_grad)


QLORA_RECIPE = """\
dtype: float32
load_in_4bit: true
use_peft: true
lora_r: 4
lora_dropout: 0.0
lora_target_modules: [all-linear]
freeze_vision_tower: true
dataset_name: {data}
max_pixels: 1024
use_cpu: true
bf16: false
gradient_checkpointing: false
per_device_train_batch_size: 4
max_steps: 2
learning_rate: 1.0e-2
save_strategy: "no"
report_to: none
"""


def test_grpo_trains_the_adapters_of_a_warm_start_further(tiny_model, report_data, tmp_path):
    """As the QLoRA recipes say: GRPO takes the folder that SFT wrote. The KL is to the warm start."""
    from safetensors.torch import load_file

    from rewards.eval import main as evaluate
    from trainers.grpo import main as grpo
    from trainers.sft import main as sft

    recipe = QLORA_RECIPE.format(data=report_data)
    (tmp_path / "sft.yaml").write_text(recipe, encoding="utf-8")
    more = "reward_funcs: [xml_format]\nnum_generations: 4\nmax_completion_length: 8\nbeta: 0.1\n"
    (tmp_path / "grpo.yaml").write_text(recipe + more, encoding="utf-8")
    warm, final = tmp_path / "warm", tmp_path / "final"
    sft(["--config", str(tmp_path / "sft.yaml"), "--model_name_or_path", str(tiny_model), "--output_dir", str(warm)])
    grpo(["--config", str(tmp_path / "grpo.yaml"), "--model_name_or_path", str(warm), "--output_dir", str(final)])
    before = load_file(warm / "adapter_model.safetensors")
    after = load_file(final / "adapter_model.safetensors")
    # No answer of an untrained model is XML: nothing to learn, so that GRPO leaves the adapters of the warm start.
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(value.abs().max() > 0 for name, value in before.items() if "lora_B" in name)
    evaluate(["--dataset_name", str(report_data), "--model", str(final), "--rewards", "xml_format", "--limit", "2"]
             + ["--max_new_tokens", "4", "--output_dir", str(tmp_path / "scores")])  # fmt: skip
    assert (tmp_path / "scores" / "summary.json").is_file()
