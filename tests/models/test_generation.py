"""Generation in batches: padding and neighbours change nothing, and no vision token is ever generated."""

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoProcessor

from data.errors import UserError
from models.families.loading import image_token_ids, load_processor, load_vlm
from models.families.registry import family_of_processor
from models.generation import answers_yes, evaluating, generate, prepare_inputs
from models.tiny import FAMILIES
from models.vlm import LocalVLM, Prompt, Sampling


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """The tiny model made to say various things: by itself it repeats the last token whatever it sees."""
    model, processor = load_vlm(str(tiny_model), device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=generator))
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(4)
    return model, processor


def _picture(colour: str, size=(64, 64)) -> Image.Image:
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((8, 8, size[0] - 8, size[1] - 8), fill=colour)
    return picture


def _ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


CONVERSATIONS = [
    _ask("Hi"),
    _ask("What colour is the shape in this image, and why is that so? " * 3),
    [{"role": "system", "content": "Answer briefly."}, *_ask("Is it red?")],
    [*_ask("What is it?"), {"role": "assistant", "content": "A circle."}, *_ask("Are you sure?")],
]
WITHOUT = [[], [], [], []]
ALL_WITH = [[_picture("red")], [_picture("blue", (96, 32))], [_picture("teal")], [_picture("gray", (32, 32))]]
SOME_WITH = [[], [_picture("blue"), _picture("red", (32, 64))], [_picture("teal")], []]
every_mixture = pytest.mark.parametrize("images", [WITHOUT, ALL_WITH, SOME_WITH], ids=["texts", "images", "mixed"])


@pytest.mark.parametrize("family", FAMILIES)
@every_mixture
def test_every_family_takes_rows_of_several_images_and_none(tiny_family, family, images):
    processor = load_processor(str(tiny_family(family)))
    inputs = prepare_inputs(processor, CONVERSATIONS, images)
    alone = [prepare_inputs(processor, *([one] for one in row)) for row in zip(CONVERSATIONS, images, strict=True)]
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    assert lengths == [one["input_ids"].shape[1] for one in alone]
    split = family_of_processor(processor).split
    apart = [image for one in alone for image in split(one)]
    together = split(inputs)
    assert bool(together) == any(images)
    for one, other in zip(together, apart, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_writes_a_token_that_stands_for_pictures(tiny_family, family):
    model, processor = load_vlm(str(tiny_family(family)), device="cpu")
    forbidden = image_token_ids(processor)
    assert model.config.image_token_id in forbidden
    assert not set(forbidden) & {processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id}
    with torch.no_grad():
        model.get_output_embeddings().weight[forbidden] *= 100  # by itself it would write them
    texts = generate(model, processor, CONVERSATIONS[:1], [[]], 8, num_generations=4, temperature=5.0)
    ids = processor.tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    assert not set(forbidden) & {token for row in ids for token in row}


@every_mixture
def test_greedy_answers_of_a_batch_are_those_of_each_conversation_alone(tiny, images):
    together = generate(*tiny, CONVERSATIONS, images, max_new_tokens=24)
    alone = [
        generate(*tiny, [conversation], [pictures], max_new_tokens=24)[0]
        for conversation, pictures in zip(CONVERSATIONS, images, strict=True)
    ]
    assert together == alone
    assert len(set(map(tuple, together))) == 4


@every_mixture
def test_greedy_answers_are_the_likeliest_tokens_one_by_one(tiny, images):
    model, processor = tiny
    inputs = prepare_inputs(processor, CONVERSATIONS[1:2], images[1:2])
    ids, forbidden = inputs.pop("input_ids"), image_token_ids(processor)
    mask, types = inputs.pop("attention_mask"), inputs.pop("mm_token_type_ids")
    for _ in range(8):
        with torch.no_grad():
            logits = model(
                input_ids=ids, attention_mask=mask, mm_token_type_ids=types, **inputs, use_cache=False
            ).logits
        logits[:, :, forbidden] = -torch.inf
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
        mask, types = torch.ones_like(ids), torch.nn.functional.pad(types, (0, 1))
    expected = processor.tokenizer.decode(ids[0, -8:], skip_special_tokens=True)
    assert generate(*tiny, CONVERSATIONS[1:2], images[1:2], max_new_tokens=8) == [[expected]]


def test_the_picture_changes_the_answer(tiny):
    conversation = [_ask("What colour is the shape?")]
    answers = {
        generate(*tiny, conversation, [[picture]], max_new_tokens=40)[0][0]
        for picture in (_picture("red"), _picture("blue", (32, 64)), Image.effect_noise((64, 64), 90).convert("RGB"))
    }
    assert len(answers) > 1


def test_answers_to_texts_are_the_same_after_images(tiny):
    before = generate(*tiny, CONVERSATIONS, WITHOUT, max_new_tokens=12)
    generate(*tiny, CONVERSATIONS, ALL_WITH, max_new_tokens=12)
    assert generate(*tiny, CONVERSATIONS, WITHOUT, max_new_tokens=12) == before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vision_tokens_are_never_generated_even_if_they_are_likeliest(tiny, monkeypatch, temperature):
    model, processor = tiny
    forbidden = image_token_ids(processor)
    produced = []
    original = model.generate

    def recording(**options):
        output = original(**options)
        produced.append(output[:, options["input_ids"].shape[1] :])
        return output

    def prefer_vision(module, args, logits):
        logits = logits.clone()
        logits[..., forbidden] += 1000
        return logits

    monkeypatch.setattr(model, "generate", recording)
    handle = model.lm_head.register_forward_hook(prefer_vision)
    try:
        generate(model, processor, CONVERSATIONS, SOME_WITH, max_new_tokens=20, temperature=temperature)
    finally:
        handle.remove()
    (tokens,) = produced
    assert tokens.numel() >= 4 * 10
    assert not torch.isin(tokens, torch.tensor(forbidden)).any()


def test_samples_come_grouped_by_conversation(tiny):
    torch.manual_seed(0)
    groups = generate(*tiny, CONVERSATIONS[:3], ALL_WITH[:3], max_new_tokens=8, num_generations=4, temperature=1.0)
    assert [len(group) for group in groups] == [4, 4, 4]
    assert all(len(set(group)) > 1 for group in groups)


def test_each_group_answers_its_own_conversation(tiny):
    """Near temperature 0 every sample is the greedy answer of its own conversation."""
    greedy = generate(*tiny, CONVERSATIONS, SOME_WITH, max_new_tokens=8)
    sampled = generate(*tiny, CONVERSATIONS, SOME_WITH, max_new_tokens=8, num_generations=3, temperature=1e-4)
    assert sampled == [group * 3 for group in greedy]


def test_samples_depend_on_the_seed_alone(tiny):
    def sample(seed):
        torch.manual_seed(seed)
        return generate(*tiny, CONVERSATIONS, WITHOUT, max_new_tokens=8, num_generations=2, temperature=1.0)

    assert sample(1) == sample(1) != sample(2)


def test_answers_have_no_special_tokens_and_no_prompt(tiny):
    for (answer,) in generate(*tiny, CONVERSATIONS, SOME_WITH, max_new_tokens=30):
        assert "<|" not in answer
        assert "assistant" not in answer


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(tiny, training):
    model = tiny[0]
    model.train(training)
    try:
        generate(*tiny, CONVERSATIONS[:1], [[]], max_new_tokens=2)
        assert model.training is training
        with evaluating(model):
            assert not model.training
        assert model.training is training
    finally:
        model.eval()


def test_inputs_are_padded_on_the_left(tiny):
    inputs = prepare_inputs(tiny[1], CONVERSATIONS, SOME_WITH)
    mask = inputs["attention_mask"]
    assert (mask[:, -1] == 1).all()
    assert (mask.diff(dim=1) >= 0).all()
    assert int((mask[:, 0] == 0).sum()) == 3  # all but the longest
    assert (inputs["input_ids"][mask == 0] == tiny[1].tokenizer.pad_token_id).all()


def test_inputs_are_those_of_each_conversation_alone(tiny):
    together = prepare_inputs(tiny[1], CONVERSATIONS, SOME_WITH)
    for row, (conversation, pictures) in enumerate(zip(CONVERSATIONS, SOME_WITH, strict=True)):
        alone = prepare_inputs(tiny[1], [conversation], [pictures])["input_ids"][0]
        assert torch.equal(together["input_ids"][row][together["attention_mask"][row] == 1], alone)


def test_images_stand_before_the_first_text_of_the_user(tiny):
    inputs = prepare_inputs(tiny[1], CONVERSATIONS[3:], [[_picture("red", (16, 16)), _picture("red", (16, 32))]])
    one, two = (
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>",
    )
    assert f"<|im_start|>user\n{one}{two}What is it?" in tiny[1].tokenizer.decode(inputs["input_ids"][0])


def test_blocks_that_were_placed_by_hand_stay(tiny):
    blocks = [{"type": "text", "text": "Look: "}, {"type": "image"}]
    inputs = prepare_inputs(tiny[1], [[{"role": "user", "content": blocks}]], [[_picture("red", (16, 16))]])
    text = tiny[1].tokenizer.decode(inputs["input_ids"][0])
    assert "user\nLook: <|vision_start|><|image_pad|><|vision_end|><|im_end|>" in text


def test_conversations_are_not_changed(tiny):
    conversation = _ask("What is it?")
    prepare_inputs(tiny[1], [conversation], [[_picture("red")]])
    assert conversation == [{"role": "user", "content": "What is it?"}]


def test_an_image_without_a_place_is_an_error(tiny):
    with pytest.raises(ValueError, match="number of images"):
        prepare_inputs(tiny[1], [[{"role": "system", "content": "No user here."}]], [[_picture("red")]])


def test_answers_to_yes_or_no_do_not_depend_on_the_batch(tiny, tiny_model):
    model, _ = tiny
    processor = AutoProcessor.from_pretrained(tiny_model)  # pads on the right unless told otherwise
    ids = processor.tokenizer.encode("no", add_special_tokens=False)[:1]
    pictures = [
        _picture("red"),
        Image.new("RGB", (32, 32)),
        _picture("teal", (96, 16)),
        Image.new("RGB", (64, 64), "red"),
    ]
    answers = []
    for bias in (-100.0, 0.2, 0.3, 0.4, 0.5, 100.0):
        handle = model.lm_head.register_forward_hook(
            lambda module, args, logits, bias=bias: logits.index_add(
                -1, torch.tensor(ids), torch.full_like(logits[..., :1], bias)
            )
        )
        together = answers_yes(model, processor, pictures, "Is it red?")
        alone = [answers_yes(model, processor, [picture], "Is it red?")[0] for picture in pictures]
        handle.remove()
        assert together == alone
        answers.append(together)
    assert answers[0] == [True] * 4
    assert answers[-1] == [False] * 4


def test_a_token_of_the_family_in_a_text_is_an_error_and_is_left_out_of_a_judges_question(tiny_family):
    model, processor = load_vlm(str(tiny_family("gemma3")), device="cpu")
    with pytest.raises(UserError, match="the text contains <image_soft_token>, which promises an image: 'a <image_so"):
        generate(model, processor, [_ask("a <image_soft_token>")], [[]])
    with pytest.raises(UserError, match="prompt 7: the text contains <image_soft_token>"):
        LocalVLM(model, processor).complete([Prompt(_ask("a <image_soft_token>"), [], 7)], Sampling())
    pictures = [_picture("red"), _picture("blue", (96, 32))]
    plain = answers_yes(model, processor, pictures, "Is it   red?")
    assert answers_yes(model, processor, pictures, "Is it <start_of_image> red?") == plain


def test_a_start_that_the_chat_template_writes_is_not_written_again(tiny_family):
    """Published tokenizers of Gemma put it before any text."""
    from tokenizers.processors import TemplateProcessing

    processor = load_processor(str(tiny_family("gemma3")))
    tokenizer = processor.tokenizer
    start = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{start[0]} $A", special_tokens=[start])
    assert tokenizer("a")["input_ids"][0] == start[1]
    [ids] = prepare_inputs(processor, [_ask("Hi")], [[]])["input_ids"].tolist()
    assert ids.count(start[1]) == 1
