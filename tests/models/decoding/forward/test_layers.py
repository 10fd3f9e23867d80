"""New tokens by the parts of a language model give what its forward gives, bit by bit, or are left to it."""

from types import MethodType

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from peft import LoraConfig, get_peft_model
from prefix_cases import prompts_of
from rollout_cases import MAKERS, SHAPES, complete, inputs_of, put, spread, spread_model
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from models.decoding.cache import RolloutCache
from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.forward import forwards, layers
from models.decoding.forward.layers import Layers, Rotation, layers_of
from models.families.registry import family_of
from models.families.vision_hooks import install_vision_hooks, vision_language_model
from models.shared_prefix.prefill import shared_prefill

BY_PARTS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm", "llava_onevision")


def own_model(family: str = "qwen2_vl") -> nn.Module:
    return spread(MAKERS[family]().eval())


def parts_of(model: nn.Module) -> Layers | None:
    return layers_of(model, RolloutCache([], 0))


def text_of(model: nn.Module) -> nn.Module:
    combined = vision_language_model(model)
    return family_of(combined.config).language_model(combined)


@pytest.mark.parametrize("family", MAKERS)
def test_families_that_are_built_as_llama_is_go_by_their_parts(family):
    assert (parts_of(spread_model(family)) is not None) == (family in BY_PARTS)


class BothWays(Layers):
    """Fails unless a model's forward gives the same logits from the same cache."""

    compared = 0

    def logits(self, ids, first, step, masks):
        found = super().logits(ids, first, step, masks)
        whole = self.whole(input_ids=ids, position_ids=first + step.places, attention_mask=masks, cache=self.cache)
        assert torch.equal(found, whole.logits)
        type(self).compared += 1
        return found

    def __init__(self, model, text, cache):
        super().__init__(model, text, cache)
        self.cache = cache

        def whole(**inputs):
            with forwards.rollout_attention(text.config):
                return model(**inputs, use_cache=True, return_dict=True)

        self.whole = whole


@pytest.fixture
def both_ways(monkeypatch):
    monkeypatch.setattr(layers, "Layers", BothWays)
    monkeypatch.setattr(BothWays, "compared", 0)
    return BothWays


def drafted() -> Decoding:
    return Decoding(drafting=Drafting(DraftStore((3, 2)), 4))


@pytest.mark.parametrize("family", BY_PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_the_whole_forward(family, dtype, both_ways):
    model = own_model(family).to(dtype)
    inputs = prompts_of(SHAPES["mixed order"], model)
    for decoding in (Decoding(), drafted(), Decoding(slots=3)):
        complete(model, inputs, decoding, max_new_tokens=80)  # more than the angles that are made at first
    assert both_ways.compared > 80


def test_logits_under_autocast(both_ways):
    with torch.autocast("cpu", torch.bfloat16):
        complete(spread_model("qwen3_vl"), inputs_of("qwen3_vl", "groups"), Decoding())
    assert both_ways.compared


@pytest.fixture
def in_mixed_precision():
    """A model whose forward accelerate casts, as a trainer with `bf16: true` has it."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(own_model(), evaluation_mode=True)
    yield model
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_logits_of_a_model_in_mixed_precision(in_mixed_precision, both_ways):
    complete(in_mixed_precision, inputs_of("qwen2_vl", "groups"), Decoding())
    assert both_ways.compared


def test_logits_with_adapters_are_those_of_the_whole_forward(both_ways):
    adapters = LoraConfig(target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False)
    complete(get_peft_model(own_model(), adapters).eval(), inputs_of("qwen2_vl", "groups"), Decoding())
    assert both_ways.compared


@pytest.mark.parametrize(
    "mutant",
    [
        lambda self, states: states * self.cos - states.roll(states.shape[-1] // 2, -1) * self.sin,
        lambda self, states: states,
        lambda self, states: states * self.cos[:1] + states.roll(states.shape[-1] // 2, -1) * self.sin[:1],
    ],
)
def test_other_angles_are_seen(mutant, both_ways):
    with put(Rotation, "turn", mutant), pytest.raises(AssertionError):
        complete(spread_model("qwen2_vl"), inputs_of("qwen2_vl", "mixed order"), Decoding())


# -- what is left to the whole forward --------------------------------------------------------------------------------


def hooked(module: nn.Module) -> list:
    seen: list = []
    module.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize(
    "place",
    [
        lambda model: model,
        vision_language_model,
        text_of,
        lambda model: text_of(model).layers[1],
        lambda model: text_of(model).layers[0].self_attn,
        lambda model: text_of(model).norm,
    ],
)
def test_a_hook_on_what_would_be_passed_over_is_run_at_every_step(place):
    model = own_model()
    seen = hooked(place(model))
    decoding = Decoding()
    complete(model, inputs_of("qwen2_vl", "one group"), decoding)
    assert len(seen) == 1 + decoding.last.counts.forwards


def test_hooks_on_the_parts_are_run_as_well():
    model = own_model()
    seen = hooked(text_of(model).layers[0].self_attn.o_proj)
    assert parts_of(model) is not None
    decoding = Decoding()
    complete(model, inputs_of("qwen2_vl", "one group"), decoding)
    assert len(seen) == 1 + decoding.last.counts.forwards


def test_a_forward_of_ones_own_is_run():
    model = own_model()
    own = model.forward
    model.forward = MethodType(lambda self, *args, **kwargs: own(*args, **kwargs), model)
    assert parts_of(model) is None


def test_what_the_toolkit_and_its_libraries_have_around_a_forward_does_not_count():
    model = own_model()
    install_vision_hooks(model, distributed=True)
    add_fused_lm_head(model)
    with shared_prefill(model):
        assert parts_of(model) is not None


def test_a_forward_of_ones_own_below_the_fused_head_is_run():
    model = own_model()
    own = model.forward
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    add_fused_lm_head(model)
    assert parts_of(model) is None


def test_a_compiled_language_model_is_run_as_it_is():
    model = own_model()
    text_of(model).compile()
    assert parts_of(model) is None


def test_angles_that_depend_on_the_longest_row_are_left_to_the_model():
    model = own_model("idefics3")
    text_of(model).rotary_emb.rope_type = "dynamic"
    assert parts_of(model) is None
