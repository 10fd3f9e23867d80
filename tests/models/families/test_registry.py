"""Families are found by what models and processors say of themselves; all others are the plain one."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from models.families import registry
from models.families.base import Family
from models.families.gemma import Gemma3, Gemma4
from models.families.idefics import Idefics
from models.families.internvl import InternVL
from models.families.llava_onevision import LlavaOnevision
from models.families.qwen3_5 import Qwen35
from models.families.qwen3_vl import Qwen3VL
from models.families.qwen_vl import QwenVL
from models.families.registry import FAMILIES, combined_module, family_of, family_of_name, family_of_processor
from models.reward.load import reward_model_of
from models.shared_prefix.sharing import SharedPrefix, reason_not_shared
from models.tiny import FAMILIES as TINY

KINDS = {
    "qwen2_vl": QwenVL,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VL,
    "qwen3_5": Qwen35,
    "qwen3_5_moe": Qwen35,
    "internvl": InternVL,
    "idefics3": Idefics,
    "smolvlm": Idefics,
    "gemma3": Gemma3,
    "gemma4": Gemma4,
    "llava_onevision": LlavaOnevision,
}


@pytest.mark.parametrize("name", TINY)
def test_model_and_processor_say_the_same(tiny_family, name):
    config = AutoConfig.from_pretrained(tiny_family(name))
    assert type(family_of(config)) is KINDS[name]
    of_processor = type(family_of_processor(AutoProcessor.from_pretrained(tiny_family(name))))
    assert of_processor is (Qwen3VL if "qwen3" in name else KINDS[name])  # whose processor it shares


def test_a_model_type_is_of_one_family():
    names = [name for family in FAMILIES for name in family.model_types]
    assert len(names) == len(set(names))
    assert type(family_of(SimpleNamespace(model_type="unheard_of"))) is Family


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl"),
        ("org/qwen2.5-vl-7b-awq", "qwen2_5_vl"),
        ("/models/Qwen3-VL-4B-Instruct-FP8/", "qwen3_vl"),
        ("Qwen/Qwen3.5-4B", "qwen3_5"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe"),
        ("Qwen/Qwen3.5-35B-A3B", "qwen3_5_moe"),
        ("google/gemma-3-4b-it", "gemma3"),
        ("OpenGVLab/InternVL3_5-8B-HF", "internvl"),
    ],
)
def test_the_name_of_a_published_model_says_its_family(name, kind):
    found = family_of_name(name)
    assert found is not None
    assert kind in found.model_types


@pytest.mark.parametrize("name", ["", "policy", "gemma3/policy", "Qwen/Qwen3-8B"])
def test_other_names_say_nothing(name):
    assert family_of_name(name) is None


def test_a_reward_model_is_of_its_backbones_family(tiny_model):
    model = reward_model_of(AutoConfig.from_pretrained(tiny_model))
    assert model.config.model_type == "qwen2_vl_reward"
    assert type(family_of(model.config)) is QwenVL


@pytest.mark.parametrize("name", TINY)
def test_the_module_of_pixels_and_tokens_is_found_inside_wrappers(tiny_family, name):
    model = AutoModelForImageTextToText.from_pretrained(tiny_family(name))
    adapted = get_peft_model(model, LoraConfig(target_modules=r".*(language_model|text_model).*q_proj"))
    assert combined_module(adapted) is combined_module(torch.nn.ModuleList([model])) is model.model


def test_another_family_goes_the_plain_way_for_one_stated_reason(tiny_family, monkeypatch):
    monkeypatch.delitem(registry._BY_TYPE, "gemma3")
    model = AutoModelForImageTextToText.from_pretrained(tiny_family("gemma3"))
    assert "'gemma3'" in reason_not_shared(model)
    with pytest.warns(UserWarning, match="each row computes its prompt by itself .*'gemma3'"):
        assert not SharedPrefix("auto").usable(model)
