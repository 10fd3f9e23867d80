"""The checks of a reward model's recipe: what it reads of prompts, images and responses."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from trl import ModelConfig

from data.preferences import load_preferences
from data.rows.responses import response_images
from models.families.base import IMAGE_INPUTS, KnownFamily
from models.families.registry import family_of_processor
from models.reward.encoding import encode_groups
from models.reward.inputs import ResponseGroup, reward_messages
from trainers.diagnosis.completions import end_ids
from trainers.diagnosis.findings import Finding, not_told
from trainers.diagnosis.methods.answers import Learned, check_learned
from trainers.diagnosis.methods.set_up import isolated_set_up
from trainers.diagnosis.prompts import expected_ids
from trainers.preferences.data import PreferenceArguments
from trainers.preferences.model import check_reward_model
from trainers.reward import RewardConfig
from trainers.setup.model_settings import checked_model


def diagnose_reward(argv: Sequence[str], limit: int) -> Iterator[Finding]:
    """Everything that is found of a recipe.

    Args:
        argv: a command line of `trainers/reward.py`.
        limit: records that are looked at.
    """
    classes = (PreferenceArguments, RewardConfig, ModelConfig)
    with isolated_set_up("reward", classes, argv) as (script, args, model_args, _):
        model = checked_model(script, args, model_args, check_reward_model)
        records, _ = load_preferences(script.dataset_name, script.dataset_train_split, script.skip_bad_rows, False)
        system = args.system_prompt or getattr(model.config, "system_prompt", None)
        records = [one for one in records if not any(map(response_images, one.response))]
        if not records:
            yield not_told("prompts and answers", "every response has an image")
            return
        groups = [ResponseGroup(one.prompt(), one.images, one.response) for one in records[:limit]]
        inputs = encode_groups(model.processor, groups, system)
        rows = [
            {
                "id": record.id,
                "prompt": reward_messages(group.prompt, len(group.images), response, system)[:-1],
                "images": [model.bounds.open(image) for image in group.images],
                "gold": response,
            }
            for record, group in zip(records, groups, strict=False)
            for response in group.responses
        ]
        ends = end_ids(model_args.model_name_or_path, model.processor, model_args.model_revision)
        yield from check_learned(learned_of(rows, inputs, model.processor, model.config, ends), model.processor)


def learned_of(
    rows: list[dict], inputs: dict[str, torch.Tensor], processor: Any, config: Any, ends: set[int]
) -> Learned:
    """The model's inputs, where all that stands behind the prompt is the response."""
    there = inputs["attention_mask"]
    lengths = torch.tensor([len(expected_ids(processor, row)) for row in rows])
    counted = there * (there.cumsum(dim=1) > lengths[:, None])
    images: dict[str, Any] = {"num_images": [len(row["images"]) for row in rows]}
    family = family_of_processor(processor)
    if "pixel_values" in inputs and isinstance(family, KnownFamily):
        different = family.split(inputs)
        images |= family.join([different[place] for place in inputs["image_index"].tolist()])
    elif "pixel_values" in inputs:  # of each row its own, as the processor lays them out
        images |= {name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
    return Learned(rows, inputs["input_ids"], there, counted, images, config, ends)
