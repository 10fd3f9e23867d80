"""When the loop stands in the place of `generate`'s, and that it is put back."""

import warnings

import pytest
import torch
from prefix_cases import tiny_qwen2_vl
from rollout_cases import complete, inputs_of, spread_model
from transformers import GenerationConfig

from models.decoding import attention
from models.decoding.custom_generate import Decoding
from models.decoding.engine import Engine, RolloutError, rolling_out

BEAMS = {"num_beams": 2, "do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}


def generate(model, engine: Engine, *args, shares: bool | None = None, **options) -> torch.Tensor:
    inputs = {**inputs_of("qwen2_vl", "one group")}
    if args:
        del inputs["input_ids"]
    torch.manual_seed(5)
    with torch.no_grad(), rolling_out(model, engine, shares):
        return model.generate(*args, **inputs, **options)


def used(engine: Engine) -> bool:
    return engine.decoding.last is not None


@pytest.mark.parametrize("mode", ["auto", "true"])
def test_the_loop_rolls_out_where_it_is_exact(mode):
    engine = Engine(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(spread_model("qwen2_vl"), engine, max_new_tokens=2, pad_token_id=0)
    assert used(engine)


def test_false_never_rolls_out_and_says_nothing():
    engine = Engine("false")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(spread_model("qwen2_vl"), engine, max_new_tokens=2, pad_token_id=0)
        generate(spread_model("qwen2_vl"), engine, **BEAMS)
    assert not used(engine)


def test_auto_leaves_the_rest_to_transformers_and_says_so_once():
    model, engine = spread_model("qwen2_vl"), Engine("auto")
    plain = generate(model, Engine("false"), **BEAMS)
    with pytest.warns(UserWarning, match=r"transformers rolls completions out \(rollout_engine: auto\): beam search"):
        found = generate(model, engine, **BEAMS)
    assert torch.equal(found, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, engine, **BEAMS)
    with pytest.warns(UserWarning, match="use_cache: False"):  # another reason
        generate(model, engine, use_cache=False, max_new_tokens=2, pad_token_id=0)
    assert not used(engine)


def test_true_is_an_error_where_it_is_not_exact():
    with pytest.raises(
        RolloutError, match="rollout_engine: true: completions cannot be rolled out exactly: beam search"
    ):
        generate(spread_model("qwen2_vl"), Engine("true"), **BEAMS)


def test_where_prompts_are_not_shared_auto_is_false_and_true_is_not():
    engine = Engine("auto")
    generate(spread_model("qwen2_vl"), engine, shares=False, max_new_tokens=2, pad_token_id=0)
    assert not used(engine)
    engine = Engine("true")
    generate(spread_model("qwen2_vl"), engine, shares=False, max_new_tokens=2, pad_token_id=0)
    assert used(engine)


def test_dropout_leaves_prompts_to_transformers():
    model, engine = tiny_qwen2_vl().train(), Engine("auto")
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    generate(model, engine, max_new_tokens=2, pad_token_id=0)
    assert not used(engine)
    with pytest.raises(RolloutError, match="dropout of 0.5"):
        generate(model, Engine("true"), max_new_tokens=2, pad_token_id=0)


def test_arguments_by_their_places_are_looked_at():
    model, ids = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "one group")["input_ids"]
    beams = GenerationConfig(**BEAMS)
    plain = generate(model, Engine("false"), ids, beams)
    with pytest.warns(UserWarning, match="beam search"):
        assert torch.equal(generate(model, Engine("auto"), ids, beams), plain)
    engine = Engine("true")
    generate(model, engine, ids, GenerationConfig(max_new_tokens=2, pad_token_id=0))
    assert used(engine)


def test_generate_is_put_back():
    model = spread_model("qwen2_vl")
    with rolling_out(model, Engine("auto")):
        assert "generate" in vars(model)
    assert "generate" not in vars(model)
    for mode in ("auto", "true"):
        with pytest.raises(RuntimeError, match="stop"), rolling_out(model, Engine(mode)):
            raise RuntimeError("stop")
        assert "generate" not in vars(model)
    with pytest.raises(RolloutError):
        generate(model, Engine("true"), **BEAMS)
    assert "generate" not in vars(model)


def test_a_generate_of_the_instance_is_put_back():
    model = tiny_qwen2_vl().eval()
    own = model.generate
    model.generate = own
    with pytest.raises(RuntimeError, match="stop"), rolling_out(model, Engine("auto")):
        raise RuntimeError("stop")
    assert vars(model)["generate"] is own
    with rolling_out(model, Engine("auto")):
        with rolling_out(model, Engine("false")):
            pass
        assert vars(model)["generate"] is not own
    assert vars(model)["generate"] is own


def test_the_attention_of_the_model_is_put_back_also_after_an_error():
    model = spread_model("qwen2_vl")
    text = model.model.language_model
    before, inside = text.config._attn_implementation, []

    def fail_after_the_prompt(_, args, kwargs) -> None:
        inside.append(text.config._attn_implementation)
        if kwargs["inputs_embeds"].shape[1] == 1:
            raise RuntimeError("in a layer")

    hook = text.register_forward_pre_hook(fail_after_the_prompt, with_kwargs=True)
    with pytest.raises(RuntimeError, match="in a layer"):
        complete(model, inputs_of("qwen2_vl", "one group"), Decoding())
    hook.remove()
    assert inside == [before, attention.NAME]
    assert text.config._attn_implementation == before
    assert "generate" not in vars(model)
