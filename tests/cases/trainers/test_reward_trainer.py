"""`RewardTrainer` from Python: settings that concern its model, data sets as TRL has them, a model by its name."""

from pathlib import Path

import pytest
import trl
from datasets import Dataset, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import PreTrainedTokenizerBase

from data.io.records import RecordError
from data.preferences import PreferenceRecord
from models.families.loading import load_processor
from trainers.reward import RewardConfig, RewardTrainer

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": 1}
QUIET |= {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "disable_tqdm": True}


def config(folder: Path, **settings) -> RewardConfig:
    return RewardConfig(output_dir=str(folder / "run"), **QUIET, **settings)


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
    from models.reward.load import load_reward_model

    args = config(tmp_path, **settings)
    trainer = RewardTrainer(str(tiny_model), args, train_dataset=RECORDS)
    for name, value in args.model_settings().items():
        assert getattr(trainer.model.config, name) == value
        assert getattr(trainer.reward_config, name) == value
    if "head_activation" in settings:
        assert type(trainer.model.score_head.activation).__name__ == "Tanh"
    model, processor = load_reward_model(tiny_reward_model, "cpu")
    found = r"RewardConfig says .*, the model has .*, or make it by models\.reward\.load\.from_backbone\("
    with pytest.raises(ValueError, match=f"{next(iter(args.model_settings()))}: {found}"):
        RewardTrainer(model, config(tmp_path, **settings), None, RECORDS, processing_class=processor)


def test_p01_equal_settings_are_no_contradiction(tiny_reward_model, tmp_path):
    from models.reward.load import load_reward_model

    model, processor = load_reward_model(tiny_reward_model, "cpu")
    settings = {"score_min": -5.0, "system_prompt": "Judge the answer."}
    RewardTrainer(model, config(tmp_path, **settings), None, RECORDS, processing_class=processor)


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


PROMPT_IN_BOTH = Dataset.from_list([{"chosen": "The sky is blue.", "rejected": "The sky is green."}] * 2)


@pytest.mark.parametrize(
    ("dataset", "responses"),
    [(trl_rows(), ["red", "green"]), (OWN, ["b", "c"]), (IMPLICIT, ["a", "b"]), (PROMPT_IN_BOTH, ["blue.", "green."])],
    ids=["TRL's, with images", "own columns", "plain texts", "plain texts with their prompt"],
)
def test_p03_a_data_set_is_trained_on(tiny_model, tmp_path, dataset, responses):
    trainer = RewardTrainer(str(tiny_model), config(tmp_path), train_dataset=dataset, eval_dataset=dataset)
    assert trainer.train_records[0].response == responses
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(2)])
    assert ("pixel_values" in batch) == ("images" in dataset.column_names)
    before = trainer.model.score_head.out.weight.detach().clone()
    trainer.train()
    assert not before.equal(trainer.model.score_head.out.weight)


def test_p03_a_data_set_and_trls_settings_in_trls_order(tiny_model, tmp_path):
    args = trl.RewardConfig(str(tmp_path / "run"), max_length=None, **QUIET)
    processor = load_processor(str(tiny_model))
    trainer = RewardTrainer(str(tiny_model), args, None, IMPLICIT, {"a": OWN, "b": IMPLICIT}, processor)
    assert isinstance(trainer.args, RewardConfig)
    assert trainer.processing_class is processor
    figures = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss"} <= set(figures)


def test_p15_no_configuration(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainers.reward.RewardConfig", lambda output_dir: config(Path(output_dir)))
    trainer = RewardTrainer(model=str(tiny_model), train_dataset=IMPLICIT)
    assert trainer.args.output_dir == f"{tiny_model.name}-Reward/run"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data_collator": IMPLICIT}, TypeError, "data_collator: expected a function, found Dataset; data sets come"),
        ({"train_dataset": None}, ValueError, "train_dataset: expected records or a data set, found none"),
        ({"processing_class": PreTrainedTokenizerBase()}, TypeError, "processing_class: expected the .* processor"),
    ],
)
def test_p15_an_argument_that_cannot_be_used(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        RewardTrainer("nowhere", config(tmp_path), **{"train_dataset": IMPLICIT} | arguments)


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset", "eval_dataset a"])
def test_p01_longer_records_are_an_error(tiny_model, tmp_path, name):
    long = Dataset.from_list([{"prompt": "what? " * 40, "chosen": "a", "rejected": "b"}])
    given = {"train_dataset": IMPLICIT} | {name: long}
    if name == "eval_dataset a":
        given = {"train_dataset": IMPLICIT, "eval_dataset": {"a": long}}
    found = r" tokens .*; expected at most 60 \(max_length, response included\)"
    with pytest.raises(RecordError, match=rf"^{name}: row 0: the prompt has \d+{found}"):
        RewardTrainer(str(tiny_model), config(tmp_path, max_length=60), **given)


def test_p01_a_chat_template_is_of_processor_and_tokenizer(tiny_model, tmp_path):
    template = tmp_path / "short.jinja"
    template.write_text("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    trainer = RewardTrainer(str(tiny_model), config(tmp_path, chat_template_path=str(template)), None, IMPLICIT)
    assert trainer.processing_class.apply_chat_template([{"role": "user", "content": "a"}]) == "a"
    assert trainer.processing_class.tokenizer.chat_template == template.read_text()


def test_p01_quantisation_is_what_the_model_is_loaded_with(tmp_path, monkeypatch):
    def load(name, settings, quantization_config, device_map, **options):
        raise LookupError(quantization_config)

    monkeypatch.setattr("trainers.preferences.model.from_backbone", load)
    with pytest.raises(LookupError, match="four bits"):
        RewardTrainer("a/model", config(tmp_path), train_dataset=IMPLICIT, quantization_config="four bits")


def test_p03_a_wrong_row_is_named(tiny_model, tmp_path):
    wrong = Dataset.from_list([{"query": "what?", "response": ["a", "b"], "human_ranking": [0, 1, 2]}])
    with pytest.raises(RecordError, match="train_dataset, row 1: .*expected a rank for each of 2 responses, found 3"):
        RewardTrainer(str(tiny_model), config(tmp_path), train_dataset=wrong)
