"""Whether prompts are shared; and the check that it is exact: what it catches, what it lets pass, what it leaves as it
was."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from prefix_cases import (
    MIXED,
    SHARED_IMAGES,
    Batch,
    as_rows,
    checkpointing,
    detached_deepstack,
    of_states,
    plain_log_probs,
    tiny_qwen2_vl,
    tiny_qwen3_5,
    tiny_qwen3_vl,
    write,
)
from torch import nn

from models.families.qwen3_vl import Qwen3VL
from models.shared_prefix import fork, packing
from models.shared_prefix.packing import continuation_log_probs, pack_continuations
from models.shared_prefix.sharing import SharedPrefix, SharedPrefixError

MAKERS = {"qwen2_vl": tiny_qwen2_vl, "qwen3_vl": tiny_qwen3_vl, "qwen3_5": tiny_qwen3_5}


def checked(model: nn.Module, sharing: SharedPrefix, batch: Batch = MIXED) -> torch.Tensor:
    """Log-probabilities of a batch, with shared prompts."""
    inputs, width, images, prompts = write(batch, model)
    rows = as_rows(model, inputs, images, prompts)
    return sharing.run(
        model,
        lambda module: continuation_log_probs(module, pack_continuations(module, rows, width))[0],
        lambda module: plain_log_probs(module, inputs, width, prompts),
    )


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, "off"), (torch.float32, "reentrant"), (torch.bfloat16, "not reentrant")]
)
@pytest.mark.parametrize("family", MAKERS)
def test_what_is_exact_passes(family, dtype, kind):
    model = MAKERS[family]().to(dtype).train()
    checkpointing(model, kind)
    sharing = SharedPrefix("true", check=True)
    checked(model, sharing)
    assert not sharing._unchecked


def test_it_finds_states_that_are_detached(monkeypatch):
    """Values are right, gradients are not."""
    monkeypatch.setattr(fork._State, "of_rows", of_states(lambda *states: [one.detach() for one in states]))
    for dtype in (torch.float32, torch.bfloat16):
        sharing = SharedPrefix("true", check=True)
        with torch.no_grad():
            checked(tiny_qwen3_5().to(dtype).train(), sharing)
        with pytest.raises(SharedPrefixError, match=r"values .* are right, but gradients .*layers\.2\.linear_attn"):
            checked(tiny_qwen3_5().to(dtype).train(), sharing)


@pytest.mark.parametrize("kind", ["off", "reentrant", "not reentrant"])
def test_it_finds_features_that_are_detached(monkeypatch, kind):
    monkeypatch.setattr(Qwen3VL, "choose_images", detached_deepstack)
    model = tiny_qwen3_vl().train()
    checkpointing(model, kind)
    with pytest.raises(SharedPrefixError, match=r"that at model\.visual\.deepstack"):
        checked(model, SharedPrefix("true", check=True), SHARED_IMAGES)


def test_it_finds_wrong_values(monkeypatch):
    right = packing._positions
    monkeypatch.setattr(packing, "_positions", lambda *arguments: right(*arguments) * 2)
    with pytest.raises(SharedPrefixError, match="values with shared prompts differ"):
        checked(tiny_qwen2_vl().train(), SharedPrefix("true", check=True))


def test_adapters_alone_are_compared(monkeypatch):
    monkeypatch.setattr(fork._State, "of_rows", of_states(lambda *states: [one.detach() for one in states]))
    torch.manual_seed(0)
    adapters = LoraConfig(r=2, target_modules=["up_proj", "in_proj_qkv"], init_lora_weights=False)
    model = get_peft_model(tiny_qwen3_5(), adapters).train()
    with pytest.raises(SharedPrefixError, match=r"that at \S*lora_"):
        checked(model, SharedPrefix("true", check=True))
    monkeypatch.undo()
    checked(model, SharedPrefix("true", check=True))


def test_nothing_is_changed():
    model = tiny_qwen3_5().train()
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    some = next(model.parameters())
    some.grad = torch.ones_like(some)
    before = torch.get_rng_state()
    values = checked(model, SharedPrefix("true", check=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert not frozen.requires_grad
    assert all(one.requires_grad for one in model.parameters() if one is not frozen)
    assert (some.grad == 1).all()
    assert all(one.grad is None for one in model.parameters() if one is not some)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    plainly = checked(model, SharedPrefix("true"))
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert torch.equal(values, plainly)
    gradients = []
    for result in (values, plainly):
        model.zero_grad()
        result.sum().backward()
        gradients.append([one.grad for one in model.parameters() if one.grad is not None])
    assert all(map(torch.equal, *gradients))


def test_auto_warns_once_and_true_raises():
    model = get_peft_model(tiny_qwen2_vl(), LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"])).train()
    sharing = SharedPrefix("auto")
    with pytest.warns(UserWarning, match=r"dropout of 0\.1"):
        assert not sharing.usable(model)
    with warnings.catch_warnings(action="error"):
        assert not sharing.usable(model)
    with pytest.raises(SharedPrefixError, match=r"dropout of 0\.1"):
        SharedPrefix("true").usable(model)
    assert SharedPrefix(True).usable(model.eval())
    assert not SharedPrefix(False).usable(model)
    with pytest.raises(ValueError, match="expected one of auto, true, false, found 'yes'"):
        SharedPrefix("yes")


def test_the_check_stops_on_a_difference():
    models = {torch.float32: tiny_qwen2_vl().eval(), torch.bfloat16: tiny_qwen2_vl().eval().bfloat16()}
    values = torch.zeros(2, 3)

    def checked(plain: torch.Tensor, dtype: torch.dtype) -> SharedPrefix:
        sharing = SharedPrefix("auto", check=True)
        assert sharing.run(models[dtype], lambda _: values, lambda _: plain) is values
        return sharing

    sharing = checked(values + 1e-5, torch.float32)
    later = sharing.run(models[torch.float32], lambda _: values, lambda _: values + 1)
    assert later is values  # the first batch alone is compared
    checked(values + 1e-2, torch.bfloat16)
    for wrong in (values + 1e-3, values * torch.nan):
        with pytest.raises(SharedPrefixError, match="shared_prefix_check"):
            checked(wrong, torch.float32)


def test_the_plain_way_is_gone_where_sharing_is_not_exact_or_saves_nothing():
    model = tiny_qwen2_vl().eval()
    ways = {"packed": lambda _: ("packed",), "plain": lambda _: ("plain",)}
    assert SharedPrefix("auto").run(model, **ways) == ("packed",)
    assert SharedPrefix("auto").run(model, lambda _: None, ways["plain"]) == ("plain",)
    assert SharedPrefix("false").run(model, **ways) == ("plain",)
    with pytest.warns(UserWarning, match="by itself .*: videos"):
        assert SharedPrefix("auto").run(model, **ways, reason="videos") == ("plain",)
    with pytest.raises(SharedPrefixError, match="videos"):
        SharedPrefix("true").run(model, **ways, reason="videos")
