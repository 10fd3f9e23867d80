"""The doctor finds nothing wrong with any family, whose rollouts and learned rows are as they should be."""

import pytest
from family_cells import GRPO, TRAINING
from short_runs import flags

from models.tiny import FAMILIES
from trainers.diagnosis.backends.transformers import TransformersRollouts
from trainers.diagnosis.methods.answers import diagnose_groups, diagnose_sft
from trainers.diagnosis.methods.grpo import diagnose_grpo
from trainers.diagnosis.methods.preferences import diagnose_reward
from trainers.rce import RCEConfig

pytestmark = [pytest.mark.families, pytest.mark.timeout(600)]

ROWS = 4
"""With 0, 1, 2 and 0 images."""
METHODS = {
    "GRPO": ("chat", GRPO, lambda words: diagnose_grpo(words, TransformersRollouts(), ROWS)),
    "SFT": ("chat", {}, lambda words: diagnose_sft(words, ROWS)),
    "RCE": ("groups", {"policy": "vlm"}, lambda words: diagnose_groups("RCE", RCEConfig, words, ROWS)),
    "reward model": ("preferences", {"own_folder": False}, lambda words: diagnose_reward(words, ROWS)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_wrong_and_images_are_compared(tiny_family, family_data, tmp_path, family, method):
    data, options, diagnose = METHODS[method]
    own = {"model_name_or_path": tiny_family(family), "dataset_name": family_data / data, "output_dir": tmp_path}
    rewards = {"reward_funcs": ["vqa_accuracy"]} if method == "GRPO" else {}
    findings = list(diagnose(flags(**TRAINING | options | own | rewards)))
    others = [one for one in findings if one.check != "rewards of right answers"]  # which the rows do not tell
    assert [one for one in others if one.verdict in ("wrong", "not told")] == []
    sides = ["update and processor", *(["sampler and update"] if method == "GRPO" else [])]
    assert {f"pixels of {side}" for side in sides} <= {finding.check for finding in findings}
