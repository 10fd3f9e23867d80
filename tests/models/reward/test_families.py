"""Reward models on other families than Qwen2-VL: made from transformers' own classes, with all that those have."""

import json
import pickle

import pytest
import torch
from prefix_cases import in_double
from reward_cases import CASES, make, score
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForSequenceClassification

from models.families.loading import load_processor
from models.families.registry import family_of_processor
from models.reward import config as configurations
from models.reward import model as models
from models.reward.config import class_stem, read_config, type_of_stem
from models.reward.encoding import conversation_text, encode_groups
from models.reward.inputs import ResponseGroup, reward_messages
from models.reward.load import from_backbone, load_reward_model, reward_model_kind, reward_model_of
from models.shared_prefix.sharing import SharedPrefix

FAMILIES = {
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
    "gemma3": "Gemma3",
    "gemma4": "Gemma4",
    "internvl": "InternVL",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "llava_onevision": "LlavaOnevision",
}
QUICK = ("qwen3_vl", "qwen3_5", "gemma3")
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
GROUPS = [ResponseGroup(query, images, [response, "no", "maybe so"]) for query, images, response in CASES]
EACH = [(query, images, text) for query, images, first in CASES for text in (first, "no", "maybe so")]


@pytest.fixture(params=EVERY)
def backbone(request, tiny_family):
    return tiny_family(request.param)


# -- classes ----------------------------------------------------------------------------------------------------------


def test_classes_are_made_when_they_are_asked_for(backbone):
    model = from_backbone(backbone)
    name = FAMILIES[backbone.name]
    assert type(model).__name__ == f"{name}ForRewardModel"
    assert model.config.model_type == f"{backbone.name}_reward"
    assert type(model) is getattr(models, f"{name}ForRewardModel")
    assert type(model.config) is getattr(configurations, f"{name}RewardConfig")
    assert pickle.loads(pickle.dumps((type(model), type(model.config)))) == (type(model), type(model.config))


def test_no_two_types_have_classes_of_one_name():
    stems = [class_stem(name) for name in configurations._TYPES]
    assert len(stems) == len(set(stems)) > 40
    assert all(type_of_stem(stem) == name for stem, name in zip(stems, configurations._TYPES, strict=True))


@pytest.mark.parametrize("module", [models, configurations])
def test_a_class_of_no_family_is_no_attribute(module):
    for name in ("BertRewardConfig", "BertForRewardModel", "nothing"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(module, name)


@pytest.mark.parametrize("kind", ["bert", "t5", "t5gemma2"])
def test_other_kinds_of_models_are_refused(kind):
    with pytest.raises(ValueError, match=f"folder: config.json: model_type: expected that of a vision.*'{kind}'"):
        reward_model_kind(AutoConfig.for_model(kind), "folder")


# -- scores -----------------------------------------------------------------------------------------------------------


def test_a_response_has_its_score_in_any_batch(backbone):
    model = make(backbone)
    singles = score(model, EACH, batch_size=1)
    assert singles.std() > 0.05
    allowed = 2e-5 if backbone.name.startswith("qwen3_5") else 1e-5  # linear attention rounds in other places
    for batch_size in (7, len(EACH)):
        torch.testing.assert_close(score(model, EACH, batch_size=batch_size), singles, atol=allowed, rtol=0)
    for side in ("left", "right"):
        inputs = encode_groups(model.processor, GROUPS, padding_side=side)
        del inputs["row_groups"]
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits.squeeze(1), singles, atol=2e-5, rtol=0)


def test_images_count(backbone):
    model = make(backbone)
    query, images, response = CASES[0]
    assert abs(score(model, [(query, [CASES[1][1][0]], response)]) - score(model, [(query, images, response)])) > 1e-4


def test_inputs_are_those_of_the_processor(backbone):
    processor = load_processor(str(backbone))
    query, images, response = CASES[3]
    inputs = encode_groups(processor, [ResponseGroup(query, images, ["Another one.", response])])
    text = conversation_text(processor, reward_messages(query, 3, response, None))
    expected = processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")
    there = inputs["attention_mask"][1] == 1
    for key in expected.keys() - set(family_of_processor(processor).found_inputs):
        values = expected[key]
        of_tokens = values.shape == expected["input_ids"].shape
        found = inputs[key][1:, there] if of_tokens else inputs[key].flatten()[: values.numel()].view_as(values)
        assert torch.equal(found, values), key


def test_a_response_is_written_once_also_with_the_space_that_its_model_says_first(tiny_family):
    processor = load_processor(str(tiny_family("idefics3")))
    inputs = encode_groups(processor, [ResponseGroup("why?", [], ["yes", " yes"])])
    written = [processor.decode(ids) for ids in inputs["input_ids"]]
    assert written == ["<|im_start|>User: why?<end_of_utterance>\nAssistant: yes<end_of_utterance>"] * 2


def test_images_are_encoded_once_for_all_responses(backbone):
    processor = load_processor(str(backbone))
    inputs = encode_groups(processor, GROUPS)
    images = family_of_processor(processor).split(inputs)
    if len(images) > 7:  # tiles
        assert sorted(inputs["image_index"].tolist()) == sorted([*range(len(images))] * 3)
    else:
        assert inputs["image_index"].tolist() == [0, 0, 0, 1, 1, 1, *[2, 3, 4] * 3, *[5, 6] * 3]


def test_prompts_are_shared_exactly(backbone):
    model = in_double(make(backbone))
    inputs = encode_groups(model.processor, GROUPS)
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    scores, read, seen = [], [], []
    model.model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0].numel()))
    for mode in ("true", "false"):
        model.sharing = SharedPrefix(mode)
        with torch.no_grad():
            scores.append(model(**inputs).logits)
        read.append(sum(seen))
        seen.clear()
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)
    assert read[0] < 0.6 * read[1]


# -- language head ----------------------------------------------------------------------------------------------------


def test_language_losses_are_those_of_the_plain_model(backbone):
    model = make(backbone, language_head=True)
    plain = AutoModelForImageTextToText.from_pretrained(backbone).eval()
    inputs = encode_groups(model.processor, GROUPS[:3], labelled=[0, 1, 0])
    with torch.no_grad():
        losses = model(**inputs).language_losses
    assert (losses == 0).tolist() == [False, True, True, True, False, True, False, True, True]
    for row, (query, images, text) in {0: EACH[0], 4: EACH[4], 6: EACH[6]}.items():
        alone = encode_groups(model.processor, [ResponseGroup(query, images, [text])], labelled=[0])
        del alone["row_groups"]
        alone.pop("image_index", None)
        with torch.no_grad():
            expected = plain(**alone).loss
        assert losses[row].item() == pytest.approx(expected.item(), abs=2e-5)


# -- saving and loading -----------------------------------------------------------------------------------------------


def test_round_trips_give_equal_scores(backbone, tmp_path):
    model = make(backbone, score_min=-2.0, score_max=3.0, language_head=True)
    expected = score(model)
    model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    ours, published = load_file(tmp_path / "model.safetensors"), load_file(backbone / "model.safetensors")
    assert {name for name in ours if not name.startswith("score_head.")} == published.keys()
    loaded, _ = load_reward_model(tmp_path, device="cpu")
    others = [auto.from_pretrained(tmp_path) for auto in (AutoModel, AutoModelForSequenceClassification)]
    for other in (loaded, *others):
        assert type(other) is type(model)
        other.processor = model.processor
        torch.testing.assert_close(score(other.eval()), expected, atol=1e-6, rtol=0)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path, config=loaded.config.backbone())
    first = AutoModelForImageTextToText.from_pretrained(backbone)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), first.parameters(), strict=True))


def test_a_family_that_nothing_is_known_of(tmp_path):
    """Whose type AutoConfig learns when the configuration of a reward model is read."""
    text = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "vocab_size": 99,
    }
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    plain = AutoConfig.for_model("vipllava", text_config=text, vision_config=vision, vision_feature_layers=[-1, -2])
    plain.image_token_id = 7
    stored = {**plain.to_dict(), "model_type": "vipllava_reward", "score_min": -1.0, "score_max": 1.0}
    (tmp_path / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ValueError, match="vipllava_reward"):
        AutoConfig.from_pretrained(tmp_path)
    config = read_config(tmp_path, {})
    assert type(config).__name__ == "VipLlavaRewardConfig"
    model = reward_model_of(config).eval()
    assert type(AutoModel.from_config(config)) is type(model) is models.VipLlavaForRewardModel
    ids = torch.tensor([[1, 7, 7, 7, 7, 2, 3]])
    scores = [model(ids, pixel_values=torch.full((1, 3, 16, 16), value)).logits.item() for value in (0.0, 1.0)]
    assert -1 < scores[0] != scores[1] < 1
