"""Tiny models that say various things, records with pictures, and the plain way to ask: one request, no caches."""

import torch
from PIL import Image, ImageDraw
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, set_seed

from data.prompts import in_context_messages
from data.vqa import VqaRecord, common_answer
from models import tiny
from models.families.loading import image_token_ids, render, space_before_answers
from models.tiny_families.size import TinySize
from rollouts.frozen_vlm.requests import InContextRequest

COLOURS = ("red", "blue", "teal", "gray", "green", "black", "yellow", "brown")


def build_qwen2(layers: int = 2, hidden_size: int = 64):
    """A tiny Qwen2-VL and its processor."""
    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 600)
    return _talkative(tiny.build_model(tokenizer, hidden_size, layers)), tiny.build_processor(tokenizer)


def build_qwen25():
    """A tiny Qwen2.5-VL, whose vision tower attends within windows, and its processor."""
    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 600)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIAL_TOKENS}
    text = tiny.build_model(tokenizer, 64, 2).config.text_config.to_dict()
    config = Qwen2_5_VLConfig(
        text_config={**text, "model_type": "qwen2_5_vl_text"},
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "out_hidden_size": 64,
            "num_heads": 2,
            "patch_size": tiny.PATCH_SIZE,
            "spatial_merge_size": tiny.MERGE_SIZE,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    set_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    return _talkative(model), tiny.build_processor(tokenizer)


def build_family(family: str):
    """A tiny model of another family, and its processor."""
    model, processor = tiny.build_family(family, tiny.DEFAULT_CORPUS, 600, TinySize(hidden_size=64))
    return _talkative(model), processor


def _talkative(model):
    """By themselves tiny models repeat the last token whatever they see."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(model.lm_head.weight.shape, generator=generator))
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(3)
    return model.eval()


def picture(colour: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((4, 8, size[0] - 6, size[1] - 8), fill=colour)
    return image


def records() -> list[VqaRecord]:
    """Questions of different lengths about one or two pictures of different sizes, some of them the same picture."""
    sizes = ((64, 64), (96, 32), (32, 64), (48, 48))
    made = []
    for number, colour in enumerate(COLOURS):
        images = [picture(colour, sizes[number % 4])]
        if number % 3 == 2:
            images.append(picture(COLOURS[0]))
        question = " ".join(["what color is the shape", "in the image, or near it"][: 1 + number % 2]) + "?"
        answers = [colour, "a red circle", "no"][: 1 + number % 3] + [colour] * 3
        made.append(VqaRecord(id=number, question=question, answers=answers, images=images))
    return made


def plain_inputs(processor, request: InContextRequest, style: str, system: str | None, answer: str = ""):
    """The processor's own inputs for one request, the answer appended to the text."""
    shown = [(example.question, common_answer(example)) for example in request.examples]
    counts = [len(record.images) for record in (*request.examples, request.query)]
    messages = in_context_messages(request.query.question, shown, style, system, counts)
    text = render(processor, messages, add_generation_prompt=True) + answer
    images = [image for record in (*request.examples, request.query) for image in record.images]
    return processor(text=[text], images=[images], return_tensors="pt")


def plain_log_prob(model, processor, request: InContextRequest, style: str, system: str | None) -> float:
    """Mean log-probability over the answer's tokens, found by their characters in the processor's own input."""
    answer = space_before_answers(processor) + request.answer
    inputs = plain_inputs(processor, request, style, system, answer)
    ids = inputs["input_ids"][0]
    # Walk back from the end until the tokens spell the answer.
    count = next(n for n in range(1, len(ids)) if processor.tokenizer.decode(ids[-n:]) == answer)
    with torch.no_grad():
        logits = model(**inputs).logits[0].double()
    chosen = logits.log_softmax(-1)[-count - 1 : -1].gather(1, ids[-count:, None])
    return chosen.mean().item()


def plain_answer(model, processor, request: InContextRequest, style: str, system: str | None, **settings) -> str:
    inputs = plain_inputs(processor, request, style, system)
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, suppress_tokens=image_token_ids(processor), **settings)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
