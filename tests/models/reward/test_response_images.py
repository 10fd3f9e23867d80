"""Images inside responses, in every family: encoded, scored and packed as what they are."""

import pytest
import torch
from prefix_cases import in_double
from reward_cases import make, picture
from trl.chat_template_utils import qwen3_vl_chat_template

from models.families.loading import load_processor
from models.families.registry import family_of_processor
from models.reward.encoding import encode_groups
from models.reward.inputs import ResponseGroup, reward_messages
from models.shared_prefix.sharing import SharedPrefix, SharedPrefixError
from models.tiny import FAMILIES

QUICK = ("qwen2_vl", "qwen3_vl", "internvl", "gemma3")
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
APART = ("gemma3", "gemma4")
"""Whose images cannot stand behind a shared prompt."""


@pytest.fixture(params=EVERY)
def family(request):
    return request.param


@pytest.fixture
def model(tiny_family, family):
    return make(tiny_family(family))


def image(*arguments):
    """A part with a picture of this width, height and colour."""
    return {"type": "image", "image": picture(*arguments)}


def text(words):
    return {"type": "text", "text": words}


RESPONSES = [
    [image(64, 64, "red")],
    [text("Here it is:"), image(32, 48, "blue"), text("done")],
    "I cannot draw.",
    [image(64, 64, "red"), text("and"), image(16, 64, "red")],
    [image(64, 64, "blue")],
]
GROUPS = [
    ResponseGroup("draw it", [], RESPONSES),
    ResponseGroup("make it larger", [picture(48, 48, "red")], RESPONSES),
    ResponseGroup("merge them", [picture(48, 48, "red"), picture(64, 64, "red")], RESPONSES[1:]),
    ResponseGroup("why?", [], ["no", "maybe so"]),
]
ROWS = [(group.prompt, group.images, response) for group in GROUPS for response in group.responses]


def scores(model, rows, batch_size=16):
    prompts, images, responses = zip(*rows, strict=True)
    return model.score(prompts, images, responses, batch_size=batch_size)


def test_a_response_with_images_has_its_score_in_any_batch(model, family):
    alone = scores(model, ROWS, batch_size=1)
    fewer_digits = family == "gemma4"  # in float32, most of all behind padding
    allowed = 5e-5 if fewer_digits else 2e-5
    assert alone.std() > 0.05
    torch.testing.assert_close(scores(model, ROWS), alone, atol=allowed, rtol=0)
    for side in ("right",) if fewer_digits else ("left", "right"):
        inputs = encode_groups(model.processor, GROUPS, padding_side=side)
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits.squeeze(1), alone, atol=allowed, rtol=0)


def test_another_image_in_a_response_has_another_score(model):
    for around in ([], [text("Here:")]):
        rows = [("draw it", [], [*around, image(64, 64, colour)]) for colour in ("red", "blue")]
        first, second = scores(model, rows)
        assert abs(first - second) > 1e-4
    swapped = [
        (prompt, [picture(64, 64, one)], [image(64, 64, other)])
        for prompt, one, other in (("?", "red", "blue"), ("?", "blue", "red"))
    ]
    assert abs(torch.diff(scores(model, swapped))) > 1e-4


def test_inputs_are_those_of_the_processor(tiny_family, family):
    processor = load_processor(str(tiny_family(family)))
    asked, response = [picture(48, 48, "red")], RESPONSES[3]
    inputs = encode_groups(processor, [ResponseGroup("draw it", asked, [response])])
    written = processor.apply_chat_template(
        reward_messages([{"role": "user", "content": [{"type": "image"}, text("draw it")]}], 1, response, None),
        tokenize=False,
    ).rstrip()
    pictures = [*asked, *(one["image"] for one in response if one["type"] == "image")]
    expected = processor(text=[written], images=[pictures], add_special_tokens=False, return_tensors="pt")
    for name in ("input_ids", "token_type_ids", "mm_token_type_ids"):
        assert name not in expected or torch.equal(inputs[name], expected[name]), name
    different, wanted = (family_of_processor(processor).split(one) for one in (inputs, expected))
    for number, image in zip(inputs["image_index"].tolist(), wanted, strict=True):
        assert all(torch.equal(different[number][name], value) for name, value in image.items())


def test_the_vision_tower_sees_each_image_once(tiny_family):
    inputs = encode_groups(load_processor(str(tiny_family("qwen2_vl"))), GROUPS)
    assert len(inputs["image_grid_thw"]) == 5  # of five pictures, of which two stand in prompts too
    assert len(inputs["image_index"]) == 27


def test_prompts_are_shared_exactly_or_the_reason_is_said_once(model, family):
    model = in_double(model)
    inputs = encode_groups(model.processor, GROUPS)
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    read: list[int] = []
    model.model.get_input_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].numel()))

    def run(mode: str) -> torch.Tensor:
        model.sharing = SharedPrefix(mode)
        with torch.no_grad():
            return model(**inputs).logits

    plain = run("false")
    if family in APART:
        with pytest.raises(SharedPrefixError, match="images in responses, whose tokens see those behind them"):
            run("true")
        with pytest.warns(UserWarning, match="images in responses"):
            torch.testing.assert_close(run("auto"), plain, atol=0, rtol=0)
    else:
        torch.testing.assert_close(run("true"), plain, atol=1e-5, rtol=0)
        assert read[1] < 0.5 * read[0]


def test_gradients_are_those_of_the_plain_way(tiny_family):
    model = make(tiny_family("qwen3_vl"))
    inputs = encode_groups(model.processor, GROUPS)
    found = []
    for mode in ("true", "false"):
        model.sharing = SharedPrefix(mode)
        model.zero_grad()
        model(**inputs).logits.square().sum().backward()
        layers = model.model.visual.blocks[0], model.model.language_model.layers[0]
        found.append(torch.cat([one.grad.flatten() for layer in layers for one in layer.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-5 * found[1].norm()


def test_a_template_that_writes_no_images_of_assistants_gets_those_of_users(tiny_family):
    processor = load_processor(str(tiny_family("qwen3_vl")))
    processor.chat_template = qwen3_vl_chat_template
    inputs = encode_groups(processor, [ResponseGroup("draw", [picture(48, 48, "red")], [RESPONSES[3]])])
    written = processor.decode(inputs["input_ids"][0]).replace("<|image_pad|>", "")
    place = "<|vision_start|><|vision_end|>"
    assert written == (f"<|im_start|>user\n{place}draw<|im_end|>\n<|im_start|>assistant\n{place}and{place}<|im_end|>")


def test_a_labelled_response_with_an_image_is_refused(tiny_family):
    processor = load_processor(str(tiny_family("qwen2_vl")))
    with pytest.raises(ValueError, match="lm_loss_weight: expected a best response of text alone"):
        encode_groups(processor, [ResponseGroup("draw", [], RESPONSES)], labelled=[0])
    assert (encode_groups(processor, [ResponseGroup("draw", [], RESPONSES)], labelled=[2])["labels"] != -100).any()
