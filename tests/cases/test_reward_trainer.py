"""`RewardTrainer` from Python: settings that concern its model, data sets as TRL has them, a model by its name."""

from pathlib import Path

import pytest
from datasets import Dataset, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from data.preferences import PreferenceRecord
from data.records import RecordError
from trainers.reward import RewardConfig, RewardTrainer


def config(folder: Path, **settings) -> RewardConfig:
    common = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": 1}
    common |= {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "disable_tqdm": True}
    return RewardConfig(output_dir=str(folder / "run"), **common, **settings)


RECORDS = [
    PreferenceRecord(id=number, query="what?", response=["red", "blue"], human_ranking=[0, 1]) for number in range(4)
]
SETTINGS = [
    {"score_min": -1.0, "score_max": 1.0},
    {"head_activation": "tanh"},
    {"system_prompt": "Be strict."},
    {"unbounded": True},
    {"lm_loss_weight": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: next(iter(one)))
def test_p01_settings_of_the_model_are_honoured_or_refused(tiny_model, tiny_reward_model, tmp_path, settings):
    from models.reward_model import load_reward_model

    args = config(tmp_path, **settings)
    trainer = RewardTrainer(str(tiny_model), args, RECORDS)
    for name, value in args.model_settings().items():
        assert getattr(trainer.model.config, name) == value
        assert getattr(trainer.reward_config, name) == value
    if "head_activation" in settings:
        assert type(trainer.model.score_head.activation).__name__ == "Tanh"
    model, processor = load_reward_model(tiny_reward_model, "cpu")
    with pytest.raises(ValueError, match=f"{next(iter(args.model_settings()))}: RewardConfig says .*, the model has"):
        RewardTrainer(model, config(tmp_path, **settings), RECORDS, processing_class=processor)


def test_p01_equal_settings_are_no_contradiction(tiny_reward_model, tmp_path):
    from models.reward_model import load_reward_model

    model, processor = load_reward_model(tiny_reward_model, "cpu")
    settings = {"score_min": -5.0, "system_prompt": "Judge the answer."}
    RewardTrainer(model, config(tmp_path, **settings), RECORDS, processing_class=processor)


def test_p01_weights_only_is_refused(tiny_model, tmp_path):
    args = config(tmp_path, load_weights_only=True, resume_from_checkpoint=str(tiny_model))
    with pytest.raises(ValueError, match="load_weights_only"):
        RewardTrainer(str(tiny_model), args, RECORDS)


def turn(role: str, *content) -> list[dict]:
    return [{"role": role, "content": list(content)}]


def trl_rows(count: int = 4) -> Dataset:
    """TRL's conversational preferences with an image, as Arrow stores them."""
    rows = [
        {
            "prompt": turn("user", {"type": "image", "text": None}, {"type": "text", "text": "which colour?"}),
            "images": [Image.new("RGB", (32, 32), (60 * number, 0, 0))],
            "chosen": turn("assistant", {"type": "text", "text": "red"}),
            "rejected": turn("assistant", {"type": "text", "text": "green"}),
        }
        for number in range(count)
    ]
    part = List({"content": List({"text": Value("string"), "type": Value("string")}), "role": Value("string")})
    from datasets import Features

    features = Features({"prompt": part, "images": List(ImageFeature()), "chosen": part, "rejected": part})
    return Dataset.from_list(rows, features=features)


OWN = Dataset.from_list([{"query": "what?", "response": ["a", "b", "c"], "human_ranking": [2, 0, 1]}] * 2)
IMPLICIT = Dataset.from_list(
    [{"prompt": "what?", "chosen": "a", "rejected": "b"}, {"prompt": "where?", "chosen": "c", "rejected": "d"}]
)


@pytest.mark.parametrize(
    ("dataset", "responses"),
    [(trl_rows(), ["red", "green"]), (OWN, ["b", "c"]), (IMPLICIT, ["a", "b"])],
    ids=["TRL's, with images", "own columns", "plain texts"],
)
def test_p03_a_data_set_is_trained_on(tiny_model, tmp_path, dataset, responses):
    trainer = RewardTrainer(str(tiny_model), config(tmp_path), train_dataset=dataset, eval_dataset=dataset)
    assert trainer.train_records[0].response == responses
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(2)])
    assert ("pixel_values" in batch) == ("images" in dataset.column_names)
    before = trainer.model.score_head.out.weight.detach().clone()
    trainer.train()
    assert not before.equal(trainer.model.score_head.out.weight)


def test_p03_a_wrong_row_is_named(tiny_model, tmp_path):
    wrong = Dataset.from_list([{"query": "what?", "response": ["a", "b"], "human_ranking": [0, 1, 2]}])
    with pytest.raises(RecordError, match="train_dataset, row 1: .*expected a rank for each of 2 responses, found 3"):
        RewardTrainer(str(tiny_model), config(tmp_path), wrong)
