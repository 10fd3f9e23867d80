"""The reward model: scores that padding does not change, bounds, round trips, and strict starts."""

import math
from io import BytesIO

import pytest
import torch
from PIL import Image
from reward_cases import CASES, make, score
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from models.families.loading import load_processor
from models.reward.config import Qwen2_5_VLRewardConfig, Qwen2VLRewardConfig
from models.reward.encoding import encode_groups
from models.reward.inputs import ResponseGroup, reward_messages
from models.reward.load import from_backbone, load_reward_model
from models.reward.model import Qwen2_5_VLForRewardModel, Qwen2VLForRewardModel, bound_scores, last_real_tokens


@pytest.fixture(scope="module")
def tiny_25(tmp_path_factory, tiny_model):
    """Folder of a random Qwen2.5-VL with the tiny model's processor."""
    processor = load_processor(str(tiny_model))
    tokenizer = processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "initializer_range": 0.2,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny25"
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl"])
def backbone(request, tiny_model, tiny_25):
    return tiny_model if request.param == "qwen2_vl" else tiny_25


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_each_samples_single_score(backbone, side):
    model = make(backbone)
    singles = torch.cat([score(model, [case]) for case in CASES])
    assert singles.std() > 0.05
    torch.testing.assert_close(score(model, batch_size=len(CASES)), singles, atol=1e-5, rtol=0)
    torch.testing.assert_close(score(model, batch_size=2), singles, atol=1e-5, rtol=0)
    groups = [ResponseGroup(*case[:2], [case[2]]) for case in CASES]
    inputs = encode_groups(model.processor, groups, padding_side=side)
    assert (inputs["attention_mask"] == 0).any()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits.squeeze(1), singles, atol=1e-5, rtol=0)


def test_responses_that_share_images_score_as_if_they_did_not(backbone):
    model = make(backbone)
    groups = [ResponseGroup(query, images, [response, "no", "maybe so"]) for query, images, response in CASES]
    inputs = encode_groups(model.processor, groups)
    assert len(inputs["image_grid_thw"]) == 7  # each image once, though each stands in three conversations
    assert inputs["image_index"].tolist() == [0, 0, 0, 1, 1, 1, *[2, 3, 4] * 3, *[5, 6] * 3]
    with torch.no_grad():
        found = model(**inputs).logits.squeeze(1)
    each = [(query, images, text) for query, images, first in CASES for text in (first, "no", "maybe so")]
    torch.testing.assert_close(found, score(model, each, batch_size=1), atol=1e-5, rtol=0)


def encoded(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("opened", [Image.Image.copy, encoded], ids=["pictures", "bytes"])
def test_a_prompt_is_read_once_though_its_image_is_opened_for_each_response(tiny_model, opened):
    model, read = make(tiny_model), []
    model.model.get_input_embeddings().register_forward_hook(lambda module, args, _: read.append(args[0].numel()))
    query, [image], _ = CASES[0]
    score(model, [(query, [image], text) for text in ("red", "blue")])
    score(model, [(query, [opened(image)], text) for text in ("red", "blue")])
    score(model, [(query, [opened(one)], text) for one, text in ((image, "red"), (CASES[1][1][0], "blue"))])
    once, anew, others = read
    assert once == anew < others


def test_inputs_are_those_of_the_processor(tiny_model):
    processor = load_processor(str(tiny_model))
    query, images, response = CASES[3]
    inputs = encode_groups(processor, [ResponseGroup(query, images, [response])])
    messages = reward_messages(query, 3, response, None)
    text = processor.apply_chat_template(messages, tokenize=False).removesuffix("\n")
    expected = processor(text=[text], images=images, return_tensors="pt")
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"):
        assert torch.equal(inputs[key], expected[key]), key
    assert processor.tokenizer.decode(inputs["input_ids"][0, -1]) == "<|im_end|>"


def test_the_score_is_read_from_the_last_real_token():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert last_real_tokens(mask).tolist() == [2, 3, 0, 3]


def test_what_comes_after_the_last_real_token_changes_nothing(tiny_model):
    model = make(tiny_model)
    inputs = encode_groups(model.processor, [ResponseGroup(*case[:2], [case[2]]) for case in CASES])
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 65)}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**other).logits)


def test_the_head_is_two_layers_with_silu_between(tiny_model):
    model = make(tiny_model)
    hidden = torch.randn(3, 32)
    dense, out = model.score_head.dense, model.score_head.out
    assert dense.weight.shape == (32, 32)
    first = hidden @ dense.weight.T + dense.bias
    expected = (first / (1 + torch.exp(-first))) @ out.weight.T + out.bias
    torch.testing.assert_close(model.score_head(hidden), expected)
    assert isinstance(make(tiny_model, head_activation="tanh").score_head.activation, torch.nn.Tanh)


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_bounds_by_hand():
    # 2 + 3 * 2/pi * atan(pi/2 * x / 3), for bounds -1 and 5
    for raw in (-7.0, -0.5, 0.0, 1.0, 40.0):
        expected = 2 + 3 * 2 / math.pi * math.atan(math.pi / 2 * raw / 3)
        assert bound_scores(torch.tensor(raw), -1.0, 5.0).item() == pytest.approx(expected, abs=1e-6)
    assert bound_scores(torch.tensor(123.0), None, None) == 123.0


def test_no_score_leaves_its_bounds_and_none_loses_its_gradient():
    raw = torch.tensor([-1e20, -1e6, -1e3, -45.0, 0.0, 45.0, 1e3, 1e6, 1e20], requires_grad=True)
    scores = bound_scores(raw, -5.0, 5.0)
    assert scores.min() >= -5
    assert scores.max() <= 5
    assert (scores[1:] - scores[:-1] >= 0).all()
    assert scores[-1] - scores[0] == 10  # the largest possible gap
    scores.sum().backward()
    assert raw.grad[4] == pytest.approx(1.0)
    assert (raw.grad[1:-1] > 0).all()
    assert torch.tanh(torch.tensor(50.0 / 5)) == 1  # where tanh has none left


def test_a_model_at_its_bound_can_still_learn(tiny_model):
    model = make(tiny_model)
    with torch.no_grad():
        model.score_head.out.bias.fill_(500.0)
    inputs = encode_groups(model.processor, [ResponseGroup("a", [], ["b"])])
    scores = model(**inputs).logits
    assert 4.9 < scores.item() < 5
    scores.sum().backward()
    assert model.score_head.out.bias.grad.item() > 1e-5


def test_scores_without_bounds(tiny_model):
    model = make(tiny_model, score_min=None, score_max=None)
    with torch.no_grad():
        model.score_head.out.bias.fill_(500.0)
    assert score(model).min() > 400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_min": 5.0, "score_max": -5.0}, r"score_min \(5.0\) must be below score_max \(-5.0\)"),
        ({"score_min": None}, "score_min and score_max: expected both or neither"),
        ({"head_activation": "silly"}, "head_activation: expected one of .*silu.*, found 'silly'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Qwen2VLRewardConfig(**settings)


# -- saving and loading -----------------------------------------------------------------------------------------------


def test_round_trips_give_equal_scores(backbone, tmp_path):
    model = make(backbone, score_min=-2.0, score_max=3.0, system_prompt="Judge.", head_activation="gelu")
    expected = score(model)
    model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    loaded, _ = load_reward_model(tmp_path, device="cpu")
    assert (loaded.config.score_min, loaded.config.system_prompt) == (-2.0, "Judge.")
    others = [auto.from_pretrained(tmp_path) for auto in (type(model), AutoModel, AutoModelForSequenceClassification)]
    for other in (loaded, *others):
        assert type(other) is type(model)
        pairs = zip(other.state_dict().items(), model.state_dict().items(), strict=True)
        assert all(name == expected_name and torch.equal(a, b) for (name, a), (expected_name, b) in pairs)
        other.processor = model.processor
        torch.testing.assert_close(score(other.eval()), expected, atol=1e-6, rtol=0)


def test_the_backbone_is_stored_under_its_published_names(backbone, tmp_path):
    make(backbone).save_pretrained(tmp_path)
    ours, published = load_file(tmp_path / "model.safetensors"), load_file(backbone / "model.safetensors")
    assert {name for name in ours if not name.startswith("score_head.")} == published.keys() - {"lm_head.weight"}
    assert all(torch.equal(ours[name], published[name]) for name in published if name in ours)


def test_a_new_model_has_all_weights_of_its_backbone(backbone):
    model = from_backbone(backbone)
    assert type(model) is (Qwen2_5_VLForRewardModel if "25" in backbone.name else Qwen2VLForRewardModel)
    plain = AutoModelForImageTextToText.from_pretrained(backbone)
    found = dict(model.named_parameters())
    for name, value in plain.named_parameters():
        if not name.startswith("lm_head"):
            assert torch.equal(found[name], value), name


def test_a_backbone_with_missing_weights_is_refused(tiny_model, tmp_path):
    from_backbone(tiny_model).config.backbone().save_pretrained(tmp_path)
    weights = load_file(tiny_model / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: \['model.language_model.layers.1.mlp.up_proj.weight'\]"):
        from_backbone(tmp_path)


def test_a_reward_model_without_its_head_is_refused(tiny_model, tmp_path):
    make(tiny_model).save_pretrained(tmp_path)
    weights = {name: value for name, value in load_file(tmp_path / "model.safetensors").items() if "out" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: \['score_head.out.bias', 'score_head.out.weight'\]"):
        load_reward_model(tmp_path, device="cpu")


def test_a_plain_model_is_no_reward_model(tiny_model):
    with pytest.raises(ValueError, match="model_type: expected that of a reward model, .*, found 'qwen2_vl'"):
        load_reward_model(tiny_model)


def test_training_goes_on_from_a_reward_model(tiny_model, tmp_path):
    model = make(tiny_model, score_max=9.0)
    model.save_pretrained(tmp_path)
    again = from_backbone(tmp_path, {"system_prompt": "Now judge."})
    assert (again.config.score_max, again.config.system_prompt) == (9.0, "Now judge.")
    assert torch.equal(again.score_head.out.weight, model.score_head.out.weight)


def test_the_backbones_configuration_comes_back(backbone):
    from transformers import AutoConfig

    plain = AutoConfig.from_pretrained(backbone).to_dict()
    ours = make(backbone).config.backbone().to_dict()
    for part in ("text_config", "vision_config"):
        ours[part].pop("dtype"), plain[part].pop("dtype")
    for key in ("model_type", "text_config", "vision_config", "image_token_id", "tie_word_embeddings"):
        assert ours[key] == plain[key]


# -- language head ----------------------------------------------------------------------------------------------------


def test_language_losses_are_those_of_the_plain_model(backbone):
    model = make(backbone, language_head=True)
    plain = AutoModelForImageTextToText.from_pretrained(backbone).eval()
    groups = [ResponseGroup(query, images, [response, "no"]) for query, images, response in CASES[:3]]
    inputs = encode_groups(model.processor, groups, labelled=[0, 1, 0])
    with torch.no_grad():
        losses = model(**inputs).language_losses
    assert (losses[[1, 2, 5]] == 0).all()
    for row, (query, images, text) in {0: CASES[0], 3: (*CASES[1][:2], "no"), 4: CASES[2]}.items():
        alone = encode_groups(model.processor, [ResponseGroup(query, images, [text])], labelled=[0])
        labels = alone.pop("labels")
        learned = model.processor.tokenizer.decode(labels[0][labels[0] != -100])
        assert learned == f"{text}<|im_end|>"
        alone.pop("image_index", None)
        with torch.no_grad():
            expected = plain(**alone, labels=labels).loss
        assert losses[row].item() == pytest.approx(expected.item(), abs=1e-5)


def test_labels_need_a_language_head(tiny_model):
    model = make(tiny_model)
    inputs = encode_groups(model.processor, [ResponseGroup("a", [], ["b"])], labelled=[0])
    with pytest.raises(ValueError, match="no language head"):
        model(**inputs)


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_the_models_own_system_text_takes_the_place_of_the_prompts():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what?"}]
    ours = reward_messages(prompt, 1, "a dog", "Judge.")
    assert [(turn["role"], turn["content"]) for turn in ours] == [
        ("system", "Judge."),
        ("user", [{"type": "image"}, {"type": "text", "text": "what?"}]),
        ("assistant", "a dog"),
    ]
    assert reward_messages(prompt, 0, "a dog", None)[0]["content"] == "Be brief."


def test_images_are_placed_where_the_messages_say():
    parts = [{"type": "text", "text": "this"}, {"type": "image"}, {"type": "text", "text": "?"}]
    assert reward_messages([{"role": "user", "content": parts}], 1, "x", None)[0]["content"] == parts
    with pytest.raises(ValueError, match=r"number of images: expected 1 \(places in the prompt\), found 2"):
        reward_messages([{"role": "user", "content": parts}], 2, "x", None)


def test_a_text_that_promises_an_image_is_refused(tiny_model):
    with pytest.raises(ValueError, match="which promises an image"):
        score(make(tiny_model), [("what?", [], "see <|image_pad|>")])


def test_score_says_what_is_wrong(tiny_model):
    model = make(tiny_model)
    with pytest.raises(ValueError, match="expected as many of each, found 1, 1 and 2"):
        model.score(["a"], None, ["b", "c"])
    model.processor = None
    with pytest.raises(ValueError, match="no processor"):
        model.score(["a"], None, ["b"])


def test_configurations_are_registered():
    assert Qwen2VLRewardConfig().num_labels == Qwen2_5_VLRewardConfig().num_labels == 1
