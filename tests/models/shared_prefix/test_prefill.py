"""Generation from prompts that are read once: the same completions from the same seed."""

import pytest
import torch
from PIL import Image
from prefix_cases import (
    Batch,
    Prompt,
    prompts_of,
    tiny_gemma3,
    tiny_gemma4,
    tiny_idefics,
    tiny_internvl,
    tiny_llava_onevision,
    tiny_qwen2_5_vl,
    tiny_qwen2_vl,
    tiny_qwen3_5,
    tiny_qwen3_vl,
    tiny_smolvlm,
)

from models.families.loading import load_processor, load_vlm
from models.families.registry import family_of
from models.families.vision_hooks import vision_tower
from models.generation import generate
from models.shared_prefix.prefill import shared_prefill

MIXED = Batch(
    (Prompt((3, 5), ((4, 6),), 1), Prompt((7,), (), 2), Prompt((2, 3, 4), ((4, 4), (2, 8)), 3)),
    ((0, 0), (1, 0), (0, 0), (2, 0), (0, 0), (2, 0), (1, 0)),
    left=0,
    right=0,
)


def count(module, key: str, size) -> list:
    seen = []

    def note(module, args, kwargs):
        seen.append(size(kwargs[key] if key in kwargs else args[0]))

    module.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def sample(model, inputs: dict, shared: bool, **options):
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 8, **options}
    pad = model.config.text_config.pad_token_id
    with shared_prefill(model, shared):
        return model.generate(**inputs, **options, pad_token_id=pad, output_logits=True, return_dict_in_generate=True)


QWEN = (tiny_qwen2_vl, tiny_qwen2_5_vl, tiny_qwen3_vl, tiny_qwen3_5)
IMAGES = dict.fromkeys((tiny_gemma3, tiny_gemma4), (3, 7)) | {tiny_llava_onevision: (5, 13)}
IMAGES |= dict.fromkeys((tiny_internvl, tiny_idefics, tiny_smolvlm), (5, 12))
"""How many images, or tiles, are different in `MIXED`, and how many there are in all rows."""


@pytest.mark.parametrize("make", [*QWEN, *IMAGES])
@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 3}, {"do_sample": False}])
def test_the_same_seed_gives_the_same_completions(make, options):
    model = make().eval()
    inputs = prompts_of(MIXED, model)
    text = family_of(model.config).language_model(model.model)
    language = count(text, "inputs_embeds", lambda embeds: tuple(embeds.shape[:2]))
    images = count(vision_tower(model), "grid_thw" if make in QWEN else "pixel_values", len)
    different, all_of_them = IMAGES.get(make, (3, 7))
    shared = sample(model, inputs, True, **options)
    assert language[0][0] == 3
    assert language[1] == (7 * options.get("num_return_sequences", 1), 1)
    assert images == [different]
    plain = sample(model, inputs, False, **options)
    assert torch.equal(shared.sequences, plain.sequences)
    for ours, theirs in zip(shared.logits, plain.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)
    assert images == [different, all_of_them]  # without, all images of all rows


def test_the_model_is_as_it_was_afterwards():
    model = tiny_qwen2_vl().eval()
    before = set(vars(model.model))
    with pytest.raises(RuntimeError, match="stop"), shared_prefill(model):
        raise RuntimeError("stop")
    assert set(vars(model.model)) == before


def test_rows_with_other_pixels_are_other_prompts():
    prompts = tuple(Prompt((3, 5), ((4, 4),), seed) for seed in (1, 1, 1))
    model = tiny_qwen2_vl().eval()
    inputs = prompts_of(Batch(prompts, ((0, 0), (1, 0), (2, 0)), 0, 0), model)
    inputs["pixel_values"][20:] += 0.5  # of the second and third image
    shared, plain = sample(model, inputs, True), sample(model, inputs, False)
    assert torch.equal(shared.sequences, plain.sequences)
    assert (shared.logits[0][0] - shared.logits[0][1]).abs().max() > 1e-3


def test_generate_reads_a_conversation_once(tiny_model):
    model, _ = load_vlm(str(tiny_model), device="cpu", dtype="float32")
    processor = load_processor(str(tiny_model), max_pixels=1024)
    language = count(model.model.language_model, "inputs_embeds", lambda embeds: tuple(embeds.shape[:2]))
    conversation = [{"role": "user", "content": "what is it?"}]
    texts = generate(
        model,
        processor,
        [conversation, conversation],
        [[Image.new("RGB", (32, 32), "red")], [Image.new("RGB", (32, 32), "blue")]],
        max_new_tokens=4,
        num_generations=5,
        temperature=1.0,
    )
    assert [len(of_one) for of_one in texts] == [5, 5]
    assert [rows for rows, _ in language[:2]] == [2, 10]
