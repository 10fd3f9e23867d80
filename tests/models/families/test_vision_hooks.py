"""Hooks for batches without images: nothing changes but which parameters take part."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

from models.families.vision_hooks import install_vision_hooks, share_images, vision_tower


@pytest.fixture
def processor(tiny_model):
    return AutoProcessor.from_pretrained(tiny_model)


def _qwen2_5(tiny) -> Qwen2_5_VLForConditionalGeneration:
    """A tiny Qwen2.5-VL with the vocabulary and patches of the tiny Qwen2-VL."""
    config = tiny.config.to_dict()
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1]}
    text = {key: value for key, value in config["text_config"].items() if key not in ("model_type", "architectures")}
    tokens = {key: value for key, value in config.items() if key.endswith("_token_id")}
    set_seed(0)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))


@pytest.fixture(params=["qwen2", "qwen2.5", "qwen3_vl", "qwen3_5", "lora"])
def model(request, tiny_model, tiny_family):
    if request.param.startswith("qwen3"):
        return AutoModelForImageTextToText.from_pretrained(tiny_family(request.param))
    tiny = AutoModelForImageTextToText.from_pretrained(tiny_model)
    if request.param == "qwen2.5":
        return _qwen2_5(tiny)
    if request.param == "lora":
        set_seed(0)
        return get_peft_model(tiny, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return tiny


TEXT = "<|im_start|>user\nWhat is it?<|im_end|>\n"
WITH_IMAGE = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"


def _inputs(processor, *texts: str) -> dict:
    images = [Image.effect_noise((32, 48), 80).convert("RGB") for text in texts if "image_pad" in text]
    return dict(processor(text=list(texts), images=images or None, padding=True, return_tensors="pt"))


def _empty_pixels(inputs: dict) -> dict:
    width = 3 * 2 * 8 * 8
    return {**inputs, "pixel_values": torch.zeros(0, width), "image_grid_thw": torch.zeros(0, 3, dtype=torch.long)}


def _backward(model, inputs) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    output = model(**inputs, labels=labels)
    output.loss.backward()
    return output.logits.detach()


def _gradients(model) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _trainable_vision(model) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name: value for name, value in named if ".visual." in name and value.requires_grad}


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("texts", [(TEXT,), (WITH_IMAGE,), (TEXT + TEXT, WITH_IMAGE), (TEXT, TEXT + "More.")])
def test_logits_and_gradients_are_unchanged(model, processor, texts, distributed):
    inputs = _inputs(processor, *texts)
    logits, gradients = _backward(model, inputs), _gradients(model)
    install_vision_hooks(model, distributed)
    assert torch.equal(_backward(model, inputs), logits)
    hooked = _gradients(model)
    assert gradients.keys() <= hooked.keys()
    assert all(torch.equal(hooked[name], gradients[name]) for name in gradients)


def test_without_images_vision_gradients_exist_and_are_exactly_zero(model, processor):
    install_vision_hooks(model, distributed=True)
    _backward(model, _inputs(processor, TEXT, TEXT + "More."))
    vision = _trainable_vision(model)
    assert vision
    assert all(value.grad is not None and not value.grad.any() for value in vision.values())
    language = [grad for name, grad in _gradients(model).items() if ".visual." not in name]
    assert all(grad.any() for grad in language)


def test_in_one_process_the_vision_tower_takes_no_part_without_images(model, processor):
    install_vision_hooks(model, distributed=False)
    _backward(model, _inputs(processor, TEXT))
    assert all(value.grad is None for value in _trainable_vision(model).values())


def test_with_images_vision_gradients_are_not_zero(model, processor):
    install_vision_hooks(model, distributed=True)
    _backward(model, _inputs(processor, WITH_IMAGE))
    assert any(value.grad.any() for value in _trainable_vision(model).values())


@pytest.mark.parametrize("distributed", [False, True])
def test_empty_pixels_are_those_of_no_image(model, processor, distributed):
    inputs = _inputs(processor, TEXT)
    expected = _backward(model, inputs)
    install_vision_hooks(model, distributed)
    assert torch.equal(_backward(model, _empty_pixels(inputs)), expected)
    gradients = [value.grad for value in _trainable_vision(model).values()]
    if distributed:
        assert all(gradient is not None and not gradient.any() for gradient in gradients)
    else:
        assert all(gradient is None for gradient in gradients)


def test_without_hooks_empty_pixels_cannot_be_taken(tiny_model, processor):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        _backward(model, _empty_pixels(_inputs(processor, TEXT)))


def test_images_are_encoded_once_and_blank_ones_only_for_prompts(model, processor):
    install_vision_hooks(model, distributed=True)
    calls = []
    vision_tower(model).register_forward_hook(lambda *_: calls.append(1))
    for texts, expected in (((TEXT,), 1), ((WITH_IMAGE,), 1)):
        calls.clear()
        model.generate(**_inputs(processor, *texts), max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert len(calls) == expected


@pytest.mark.parametrize("texts", [(TEXT,), (WITH_IMAGE,)])
def test_generated_tokens_are_unchanged(model, processor, texts):
    options = {**_inputs(processor, *texts), "max_new_tokens": 10, "do_sample": False}
    before = model.generate(**options)
    install_vision_hooks(model, distributed=True)
    assert torch.equal(model.generate(**options), before)


def test_a_batch_without_images_after_one_with_images_is_idle_again(tiny_model, processor):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    install_vision_hooks(model, distributed=True)
    for texts, is_zero in (((TEXT,), True), ((WITH_IMAGE,), False), ((TEXT,), True)):
        _backward(model, _inputs(processor, *texts))
        assert all(value.grad is not None for value in _trainable_vision(model).values())
        assert all(not value.grad.any() for value in _trainable_vision(model).values()) == is_zero


def test_hooks_can_be_removed(tiny_model, processor):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    for handle in install_vision_hooks(model, distributed=True):
        handle.remove()
    _backward(model, _inputs(processor, TEXT))
    assert all(value.grad is None for value in _trainable_vision(model).values())


def test_the_tower_is_found_inside_wrappers(tiny_model):
    tiny = AutoModelForImageTextToText.from_pretrained(tiny_model)
    tower = tiny.model.visual
    assert vision_tower(tiny) is vision_tower(torch.nn.ModuleList([tiny])) is tower
    assert vision_tower(get_peft_model(tiny, LoraConfig(target_modules=["q_proj"]))) is tower


def test_a_model_without_a_vision_tower_is_named():
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 9,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1))
    with pytest.raises(ValueError, match="^Qwen2ForCausalLM has no vision tower: expected a module with one of"):
        install_vision_hooks(model, distributed=True)


def test_a_model_that_shares_images_generates_as_before(model, processor):
    image = Image.new("RGB", (40, 40), "red")
    content = [{"type": "image"}, {"type": "text", "text": "question"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt")

    def answer() -> list[int]:
        return model.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist()

    before = answer()
    share_images(model)
    assert answer() == before
    stop = vision_tower(model).register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # as where memory does not suffice, and a smaller batch is tried
        model(**inputs, image_index=torch.tensor([0, 0]))
    stop.remove()
    assert answer() == before


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["internvl", "idefics3"])
def of_tiles(request, tiny_family):
    """Model and processor of a family that cuts images into tiles."""
    folder = tiny_family(request.param)
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def _tile_inputs(processor, counts: list[int]) -> dict:
    """A row for each number of images."""
    image = Image.effect_noise((64, 40), 80).convert("RGB")
    text = {"type": "text", "text": "what is it?"}
    rows = [[{"role": "user", "content": [{"type": "image"}] * count + [text]}] for count in counts]
    texts = [processor.apply_chat_template(row, tokenize=False) for row in rows]
    images = [[image] * count for count in counts] if any(counts) else None
    return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("counts", [[0], [2], [1, 0, 2]])
def test_of_tiles_logits_and_gradients_are_unchanged_but_zeros_where_no_image_is(of_tiles, counts):
    model, processor = of_tiles
    inputs = _tile_inputs(processor, counts)
    logits, gradients = _backward(model, inputs), _gradients(model)
    install_vision_hooks(model, distributed=True)
    assert torch.equal(_backward(model, inputs), logits)
    hooked = _gradients(model)
    assert all(torch.equal(hooked[name], gradients[name]) for name in gradients)
    added = {name: value for name, value in hooked.items() if name not in gradients}
    assert all(not value.any() for value in added.values())
    assert bool(added) == (counts == [0])
    assert {name for name, value in model.named_parameters() if value.requires_grad} - hooked.keys() <= {
        name for name, _ in model.named_parameters() if "vision" in name and "head" in name
    }


def test_a_row_without_images_cut_from_a_batch_with_some_shows_none(of_tiles):
    """Its pixels are no tile at all, or tiles of zeros."""
    model, processor = of_tiles
    inputs = _tile_inputs(processor, [0, 1])
    bare = {name: inputs[name][:1] for name in ("input_ids", "attention_mask")}
    expected = _backward(model, bare)
    by_row = inputs["pixel_values"].ndim == 5
    cut = {name: value[:1] if by_row else value[:0] for name, value in inputs.items() if name.startswith("pixel")}
    install_vision_hooks(model, distributed=True)
    assert torch.equal(_backward(model, {**bare, **cut}), expected)
