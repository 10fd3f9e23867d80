"""What is said before training of a model that models/families/ does not know: how it trains, or why it cannot."""

import json
from types import SimpleNamespace

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from unknown_families import write_unknown

from data.io.pixel_bounds import PixelBounds
from models.families.loading import load_processor
from trainers.setup.model import ModelInfo, inspect_model
from trainers.setup.model_settings import check_family, check_image_inputs, checked_model
from trainers.setup.recipes import RecipeError

NAMED = SimpleNamespace(model_name_or_path="mine")


def _say(capsys, kind: str, mode: str = "auto") -> str:
    check_family(CONFIG_MAPPING[kind](), SimpleNamespace(shared_prefix=mode), NAMED)
    return capsys.readouterr().out


def test_a_family_that_is_not_known_goes_the_plain_way_and_one_line_says_why(capsys):
    reason = "models of type 'llava' are not among those whose prompts can be shared"
    assert _say(capsys, "llava") == f"note: each row computes its prompt by itself: {reason}\n"
    assert _say(capsys, "llava", "false") == _say(capsys, "qwen2_vl") == ""


@pytest.mark.parametrize(("kind", "reason"), [("fuyu", "has no vision tower"), ("florence2", "read with an encoder")])
def test_a_family_that_cannot_be_trained_is_named(capsys, kind, reason):
    with pytest.raises(RecipeError, match=f"model_name_or_path: 'mine': models of type '{kind}' .*{reason}"):
        _say(capsys, kind)


def test_grpo_refuses_images_of_which_it_would_hand_on_a_part(tmp_path):
    processor = load_processor(str(write_unknown("mistral3", tmp_path)))
    model = ModelInfo(None, processor, PixelBounds(1, 1))
    check_image_inputs(model)

    class Lost(type(processor)):
        def __call__(self, **given):
            return super().__call__(**given) | {"aspect_ratio_ids": [[1]]}

    processor.__class__ = Lost
    with pytest.raises(RecipeError, match="Lost makes aspect_ratio_ids of images, which GRPO does not hand on"):
        check_image_inputs(model)


def test_a_reward_model_of_any_family_is_known_and_no_model_that_writes_texts(tmp_path):
    folder = write_unknown("llava_next", tmp_path)
    config = folder / "config.json"
    values = json.loads(config.read_text()) | {"model_type": "llava_next_reward"}
    config.write_text(json.dumps(values))
    args = SimpleNamespace(min_pixels=None, max_pixels=None)
    assert inspect_model(str(folder), args, True).config.backbone_type == "llava_next"
    script = SimpleNamespace(validate_only=True)
    named = SimpleNamespace(model_name_or_path=str(folder), model_revision="main")
    with pytest.raises(
        RecipeError, match=r"expected a model that writes texts, found a reward model .*'llava_next_rew"
    ):
        checked_model(script, args, named)
