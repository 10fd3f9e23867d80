"""Loading a model and its processor, with the pixel bounds of a recipe."""

import json
import shutil

import pytest
import torch
from PIL import Image

from data.io.pixel_bounds import BoundsError, PixelBounds
from models.errors import ModelError
from models.families.loading import (
    image_reader,
    image_token_ids,
    load_processor,
    load_vlm,
    render,
    space_before_answers,
)
from models.families.qwen_vl import QwenVL
from models.generation import generate, prepare_inputs


def _visual_tokens(processor, width: int, height: int) -> int:
    inputs = processor(text=["<|image_pad|>"], images=[Image.new("RGB", (width, height))], return_tensors="pt")
    return int((inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum())


def test_by_default_the_bounds_are_the_processors_own(tiny_model):
    assert image_reader(load_processor(str(tiny_model))) == PixelBounds(256, 4096, 8)


def test_the_bounds_of_a_recipe_decide_the_number_of_visual_tokens(tiny_model):
    processor = load_processor(str(tiny_model), min_pixels=32 * 32, max_pixels=48 * 48)
    assert image_reader(processor) == PixelBounds(1024, 2304, 8)
    assert _visual_tokens(processor, 16, 16) == 4
    assert _visual_tokens(processor, 500, 500) == 9
    assert _visual_tokens(processor, 32, 48) == 6


@pytest.mark.parametrize(("low", "high"), [(1024, None), (None, 512), (300, 5000)])
def test_each_bound_can_be_set_alone(tiny_model, low, high):
    bounds = image_reader(load_processor(str(tiny_model), low, high))
    assert (bounds.minimum, bounds.maximum) == (low or 256, high or 4096)


@pytest.mark.parametrize(("low", "high"), [(5000, None), (None, 100), (2000, 1000)])
def test_a_lower_bound_above_the_upper_one_is_refused(tiny_model, low, high):
    expected = rf"min_pixels \({low or 256}\) must not exceed max_pixels \({high or 4096}\)"
    with pytest.raises(ValueError, match=expected):
        load_processor(str(tiny_model), low, high)


def test_texts_are_padded_on_the_left(tiny_model):
    processor = load_processor(str(tiny_model))
    batch = processor(text=["a b c d e f", "a"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][1, -1] == 1
    assert batch["attention_mask"][1, 0] == 0


def test_a_model_comes_ready_to_generate(tiny_model):
    model, processor = load_vlm(str(tiny_model), device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert image_reader(processor) == PixelBounds(256, 4096, 8)
    assert load_vlm(str(tiny_model), device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


def test_vision_token_ids_are_those_that_the_tokenizer_has(tiny_model):
    processor = load_processor(str(tiny_model))
    assert processor.tokenizer.convert_ids_to_tokens(image_token_ids(processor)) == list(QwenVL.image_tokens)
    assert len(set(image_token_ids(processor))) == 5


def test_a_tokenizer_without_vision_tokens_has_no_ids():
    from transformers import Qwen2Tokenizer

    assert image_token_ids(Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])) == []


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "gemma3", "gemma4", "llava_onevision"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (40, 90), (400, 20), (64, 64)])
def test_an_image_has_as_many_tokens_as_the_processor_makes_of_it(tiny_family, family, count, size):
    processor = load_processor(str(tiny_family(family)))
    reader = image_reader(processor)
    picture = Image.effect_noise(size, 60).convert("RGB")
    lengths = []
    for images in ([], [picture] * count):
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": "What is it?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        opened = [[reader.open(image) for image in images]] if images else None
        lengths.append(len(processor(text=[text], images=opened)["input_ids"][0]))
    assert count * (reader.tokens(picture, count - 1) + reader.tokens_around) == lengths[1] - lengths[0]


def test_bounds_are_refused_where_a_family_has_none(tiny_family):
    with pytest.raises(BoundsError, match="min_pixels and max_pixels: Gemma3Processor resizes images by rules of its"):
        load_processor(str(tiny_family("gemma3")), 100, 200)


def test_a_package_that_a_processor_needs_is_named(tiny_family, monkeypatch):
    folder = tiny_family("smolvlm")
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(ModelError, match="smolvlm: cannot be loaded: Package `num2words` is required"):
        load_processor(str(folder))


ASKED = [{"role": "system", "content": "be short"}, {"role": "user", "content": "why?"}]
LLAVA = (
    "{% for turn in messages %}{{ turn['role'] + '\n' }}{% for part in turn['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (None, "<|im_start|>System: be short<end_of_utterance>\nUser: why?<end_of_utterance>\n"),
        (LLAVA, "system\nbe shortuser\nwhy?"),
    ],
)
def test_templates_that_know_texts_as_parts_alone_write_plain_ones(tiny_family, template, written):
    processor = load_processor(str(tiny_family("idefics3")))
    processor.chat_template = template or processor.chat_template
    assert render(processor, ASKED) == written
    assert "be short" in processor.decode(prepare_inputs(processor, [ASKED], [[]])["input_ids"][0])


def test_a_tokenizer_gets_texts_as_they_are(tiny_model):
    tokenizer = load_processor(str(tiny_model)).tokenizer
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] + ': ' + turn['content'] }}{% endfor %}"
    assert render(tokenizer, ASKED) == "system: be shortuser: why?"


def test_the_space_that_a_template_writes_before_answers(tiny_family, tiny_model):
    assert space_before_answers(load_processor(str(tiny_model))) == ""
    processor = load_processor(str(tiny_family("idefics3")))
    assert space_before_answers(processor) == " "
    processor.chat_template = processor.chat_template.replace("'Assistant:'", "'Assistant: '")
    assert space_before_answers(processor) == ""


def test_a_mixture_that_was_trained_with_the_loss_of_its_routers_answers(tiny_family, tmp_path):
    """Which transformers computes of whole rows alone; TRL leaves it switched on."""
    copy = shutil.copytree(tiny_family("qwen3_vl_moe"), tmp_path / "trained")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["output_router_logits"] = True
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model, processor = load_vlm(str(copy), device="cpu")
    assert len(generate(model, processor, [[{"role": "user", "content": "Hi"}]], [[]], 4)) == 1
