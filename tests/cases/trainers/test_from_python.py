"""Trainers as a program uses them: a model by its name, a data set of rows, and everything else as settings say."""

import ast
import json
import re
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from places import ROOT
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration, TrainingArguments
from trl import ModelConfig

from data.candidates.embedding_table import EmbeddingTable
from data.io.records import GivenRows, RecordError, read_rows
from models.factors.predictor import load_factor_predictor
from models.families.loading import image_reader, load_processor
from models.selectors.load import load_selector
from models.selectors.pointer import PointerSelector, PointerSelectorConfig
from trainers.factors import FactorTrainer, FactorTrainingConfig
from trainers.groups.arguments import GroupArguments
from trainers.groups.selector_policy import SelectorPolicy
from trainers.grpo import GRPOConfig, GRPOScriptArguments, GRPOTrainer
from trainers.labels.data import FactorArguments
from trainers.offline_grpo import OfflineGRPOConfig, OfflineGRPOTrainer
from trainers.preferences.data import PreferenceArguments, as_records
from trainers.rce import RCEConfig, RCETrainer
from trainers.reward import RewardConfig, RewardTrainer
from trainers.setup.recipes import RecipeError
from trainers.sft import SelectorSFTConfig, SFTConfig, SFTTrainer

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "gradient_checkpointing": False,
         "disable_tqdm": True, "per_device_train_batch_size": 2, "max_steps": 1, "logging_steps": 1}  # fmt: skip


CONFIGS = (GRPOConfig, SFTConfig, SelectorSFTConfig, RCEConfig, OfflineGRPOConfig, RewardConfig, FactorTrainingConfig)
OF_SCRIPTS = (GRPOScriptArguments, GroupArguments, PreferenceArguments, FactorArguments, ModelConfig)


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (60 * number, 0, 0))


def files_of(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


PREFERENCES = Dataset.from_list(
    [
        {"prompt": f"which colour? {number}", "images": [picture(number)], "chosen": "red", "rejected": "green"}
        for number in range(4)
    ]
)


def test_a_reward_model_by_trls_arguments(tiny_model, tmp_path):
    asked = []

    def agreement(prediction):
        asked.append((prediction.predictions, prediction.label_ids))
        return {"agreement": float(np.mean(prediction.predictions[:, 0] > prediction.predictions[:, 1]))}

    trainer = RewardTrainer(
        model=str(tiny_model),
        args=RewardConfig(str(tmp_path / "run"), max_pixels=784, **QUIET),
        train_dataset=PREFERENCES,
        eval_dataset=PREFERENCES.select(range(3)),
        compute_metrics=agreement,
        peft_config=LoraConfig(r=2, exclude_modules=["q_proj"]),
        report=True,
    )
    trainer.train()
    figures = trainer.evaluate()
    trainer.save_model()
    (scores, ranks), *_ = asked
    assert (scores.shape, ranks.tolist()) == ((3, 2), [[0, 1]] * 3)
    assert figures["eval_agreement"] == figures["eval_accuracy"]
    assert image_reader(load_processor(str(tmp_path / "run"))).maximum == 784
    stored = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert any("score_head" in name for name in stored)
    assert any("k_proj.lora_A" in name for name in stored)
    assert not any("q_proj" in name for name in stored)
    assert {"report.html", "README.md", "samples.jsonl", "recipe.yaml", "figures"} <= files_of(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (record["info"]["kind"], record["info"]["rows"]) == ("reward", {"training": 4, "evaluation": 3})
    assert record["info"]["base_model"] == str(tiny_model)


@pytest.mark.parametrize("key", ["min_pixels", "max_pixels"])
def test_bounds_of_settings_and_processor_that_differ(tiny_model, tmp_path, key):
    args = RewardConfig(str(tmp_path), **{key: 900}, **QUIET)
    with pytest.raises(ValueError, match=f"{key}: the configuration says 900, the processing_class"):
        RewardTrainer(str(tiny_model), args, None, PREFERENCES, processing_class=load_processor(str(tiny_model)))


def test_preferences_are_checked_before_training(tiny_model, tmp_path):
    broken = [{"prompt": "what?", "images": [{"bytes": b"none", "path": None}], "chosen": "a", "rejected": "b"}]
    with pytest.raises(RecordError, match="train_dataset, row 1: field 'images'"):
        RewardTrainer(str(tiny_model), RewardConfig(str(tmp_path), **QUIET), train_dataset=Dataset.from_list(broken))
    args = RewardConfig(str(tmp_path), max_prompt_length=3, **QUIET)
    with pytest.raises(RecordError, match=r"expected at most 3 \(max_prompt_length\)"):
        RewardTrainer(str(tiny_model), args, train_dataset=PREFERENCES)


@pytest.mark.parametrize(
    "cls", [RewardTrainer, SFTTrainer, GRPOTrainer, RCETrainer, OfflineGRPOTrainer, FactorTrainer]
)
@pytest.mark.parametrize("model", [Path("some/model"), None])
def test_a_model_that_is_neither_one_nor_the_name_of_one(cls, model):
    with pytest.raises(TypeError, match="model: expected a model, or its folder or Hub id as a text, found"):
        cls(model)


@pytest.mark.parametrize("cls", [RCETrainer, OfflineGRPOTrainer])
@pytest.mark.parametrize("name", ["compute_metrics", "data_collator"])
def test_what_learning_from_groups_does_itself_cannot_be_given(tiny_model, tmp_path, cls, name):
    with pytest.raises(TypeError, match=f"^{name}: {cls.__name__} makes batches and figures of groups itself"):
        cls(str(tiny_model), cls.config_class(str(tmp_path), **QUIET), **{name: len})


def test_preferences_that_are_given_only_for_an_evaluation(tiny_model, tmp_path):
    args = RewardConfig(str(tmp_path), max_prompt_length=80, **QUIET)
    trainer = RewardTrainer(str(tiny_model), args, None, PREFERENCES, PREFERENCES.select([2]))
    expected = trainer.evaluate()
    later = trainer.evaluate(PREFERENCES.select([2]))
    assert (later["eval_loss"], later["eval_score_gap"]) == (expected["eval_loss"], expected["eval_score_gap"])
    assert trainer.predict(PREFERENCES.with_format("torch")).predictions.shape == (4, 2)
    with pytest.raises(RecordError, match="eval_dataset: row 0: the prompt has .* expected at most 80"):
        trainer.evaluate([{**PREFERENCES[0], "prompt": "which? " * 80}])


def test_figures_of_several_evaluations_are_told_apart(tiny_model, tmp_path):
    sets = {"few": PREFERENCES.select([0]), "other": PREFERENCES.select([1, 2, 3])}
    trainer = RewardTrainer(str(tiny_model), RewardConfig(str(tmp_path), **QUIET), None, PREFERENCES, sets)
    together = trainer.evaluate()
    for name, rows in sets.items():
        assert together[f"eval_{name}_score_mean"] == trainer.evaluate(rows)["eval_score_mean"]
    assert together["eval_few_score_mean"] != together["eval_other_score_mean"]


def test_a_model_without_a_score_head(tiny_model, tmp_path):
    model = Qwen2VLForConditionalGeneration.from_pretrained(str(tiny_model))
    with pytest.raises(TypeError, match="expected a reward model, .*, found Qwen2VLForConditionalGeneration"):
        RewardTrainer(model, RewardConfig(str(tmp_path), **QUIET), train_dataset=PREFERENCES)


@pytest.mark.parametrize("shown_as", ["torch", "numpy", "pandas"])
def test_a_data_set_is_read_the_same_however_it_shows_its_rows(shown_as):
    shown = PREFERENCES.with_format(shown_as)
    assert as_records(shown, "train_dataset")[1] == as_records(PREFERENCES, "train_dataset")[1]
    groups = GivenRows("groups", COMPLETIONS.with_format(shown_as))
    assert list(read_rows(groups)) == list(read_rows(GivenRows("groups", COMPLETIONS)))


def test_a_users_own_transform_stays():
    asked = PREFERENCES.with_transform(lambda batch: {**batch, "chosen": ["mine"] * len(batch["chosen"])})
    assert as_records(asked, "train_dataset")[0].response == ["mine", "green"]


# -- stored groups ----------------------------------------------------------------------------------------------------

COMPLETIONS = Dataset.from_list(
    [
        {
            "id": number,
            "prompt": f"which colour? {number}",
            "images": [picture(number)],
            "candidates": [{"completion": "red", "reward": 1.0}, {"completion": "green", "reward": 0.0}],
        }
        for number in range(4)
    ]
)


@pytest.mark.parametrize(("cls", "config"), [(RCETrainer, RCEConfig), (OfflineGRPOTrainer, OfflineGRPOConfig)])
def test_a_vlm_learns_a_data_set_of_groups(tiny_model, tmp_path, cls, config):
    reference = {"reference_model": str(tiny_model)} if cls is OfflineGRPOTrainer else {}
    trainer = cls(
        str(tiny_model),
        args=config(str(tmp_path / "run"), max_pixels=784, freeze_vision_tower=True, **QUIET, **reference),
        train_dataset=COMPLETIONS,
        eval_dataset=COMPLETIONS.select([0, 1]),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
        report=True,
    )
    trainer.train()
    trainer.save_model()
    assert {"eval_expected_reward", "eval_accuracy"} <= set(trainer.evaluate())
    with pytest.raises(TypeError, match="evaluate: expected the eval_dataset or train_dataset of the trainer, found"):
        trainer.evaluate(COMPLETIONS)
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name and "visual" not in name for name in names)
    assert image_reader(load_processor(str(tmp_path / "run"))).maximum == 784
    assert {"report.html", "README.md", "samples.jsonl", "adapter_model.safetensors"} <= files_of(tmp_path / "run")


@pytest.fixture
def pointer_policy():
    values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    return SelectorPolicy(EmbeddingTable(list(range(4)), values[:4]), EmbeddingTable([*"abcd"], values[4:]))


POINTERS = Dataset.from_list(
    [
        {
            "id": number,
            "pool": [*"abcd"],
            "candidates": [{"pointer": ["a", "b"], "reward": 1.0}, {"pointer": ["c", "d"], "reward": 0.5}],
        }
        for number in range(4)
    ]
)


@pytest.mark.parametrize(("cls", "config"), [(RCETrainer, RCEConfig), (OfflineGRPOTrainer, OfflineGRPOConfig)])
def test_a_selector_by_its_name_learns_a_data_set_of_groups(pointer_policy, tmp_path, cls, config):
    torch.manual_seed(0)
    selector = PointerSelector(PointerSelectorConfig(embedding_size=4, hidden_size=8, num_heads=2))
    selector.save_pretrained(tmp_path / "s")
    reference = {"reference_model": str(tmp_path / "s")} if cls is OfflineGRPOTrainer else {}
    args = config(str(tmp_path / "run"), **QUIET, **reference)
    trainer = cls(str(tmp_path / "s"), args, POINTERS, policy=pointer_policy, report=True)
    trainer.train()
    trainer.save_model()
    assert type(load_selector(tmp_path / "run")) is PointerSelector
    assert json.loads((tmp_path / "run" / "report.json").read_text())["info"]["kind"] == "selector"


def test_groups_are_checked_before_training(tiny_model, tmp_path, pointer_policy):
    args = RCEConfig(str(tmp_path), max_prompt_length=3, **QUIET)
    with pytest.raises(RecordError, match=r"expected at most 3 \(max_prompt_length\)"):
        RCETrainer(str(tiny_model), args, COMPLETIONS)
    args = RCEConfig(str(tmp_path), **QUIET)
    with pytest.raises(RecordError, match="train_dataset: field 'candidates': policy: vlm learns from completions"):
        RCETrainer(str(tiny_model), args, POINTERS)
    with pytest.raises(TypeError, match="eval_dataset: expected a data set of candidate groups"):
        RCETrainer(str(tiny_model), args, COMPLETIONS, {"one": COMPLETIONS})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze_vision_tower": True}, "freeze_vision_tower: only policy: vlm reads it"),
        ({"max_pixels": 784}, "max_pixels: only policy: vlm reads it"),
        ({"shared_prefix": True}, "shared_prefix: only policy: vlm reads it"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: the configuration says 0.1, the policy 0.0"),
        ({"model_init_kwargs": {"revision": "v1"}}, "model_init_kwargs, peft_config, quantization_config: of a VLM"),
    ],
)
def test_settings_that_a_selector_does_not_read(pointer_policy, tmp_path, settings, message):
    selector = PointerSelector(PointerSelectorConfig(embedding_size=4, hidden_size=8, num_heads=2))
    with pytest.raises(RecipeError, match=message):
        RCETrainer(selector, RCEConfig(str(tmp_path), **QUIET, **settings), POINTERS, policy=pointer_policy)


def test_labels_of_a_vlm_are_not_smoothed(tiny_model, tmp_path):
    with pytest.raises(RecipeError, match="label_smoothing_factor: only policy: selector reads it"):
        RCETrainer(str(tiny_model), RCEConfig(str(tmp_path), label_smoothing_factor=0.1, **QUIET), COMPLETIONS)


# -- demonstrations ---------------------------------------------------------------------------------------------------

QUESTIONS = Dataset.from_list(
    [{"question": f"which colour? {number}", "answers": ["red"], "image": picture(number)} for number in range(4)]
)
TURNS = Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": "which colour?"}],
            "completion": [{"role": "assistant", "content": "red"}],
            "images": [picture(number)],
        }
        for number in range(4)
    ]
)


@pytest.mark.parametrize("rows", [QUESTIONS, TURNS], ids=["questions", "chat messages"])
def test_a_vlm_learns_rows_of_a_task(tiny_model, tmp_path, rows):
    trainer = SFTTrainer(
        str(tiny_model),
        SFTConfig(str(tmp_path / "run"), max_pixels=784, max_prompt_length=200, **QUIET),
        train_dataset=rows,
        eval_dataset={"few": rows.select([0])},
        report=rows is TURNS,
    )
    trainer.train()
    trainer.save_model()
    assert "eval_few_loss" in trainer.evaluate()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert image_reader(load_processor(str(tmp_path / "run"))).maximum == 784
    assert ("report.html" in files_of(tmp_path / "run")) == (rows is TURNS)
    if rows is TURNS:
        assert {"README.md", "samples.jsonl"} <= files_of(tmp_path / "run")


def test_demonstrations_are_checked_before_training(tiny_model, tmp_path):
    args = SFTConfig(str(tmp_path), max_prompt_length=3, **QUIET)
    with pytest.raises(RecordError, match=r"train_dataset: row 0: .* expected at most 3 \(max_prompt_length\)"):
        SFTTrainer(str(tiny_model), args, train_dataset=TURNS)
    with pytest.raises(ValueError, match="max_prompt_length: prompts are counted"):
        SFTTrainer(str(tiny_model), args, train_dataset=Dataset.from_list([{"text": "a"}]))
    args = SFTConfig(str(tmp_path), **QUIET)
    with pytest.raises(RecordError, match="eval_dataset: row 0: field 'completion': missing"):
        SFTTrainer(str(tiny_model), args, None, TURNS, TURNS.remove_columns("completion"))
    with pytest.raises(ValueError, match="formatting_func: the rows of train_dataset say what prompt and answer are"):
        SFTTrainer(str(tiny_model), args, train_dataset=TURNS, formatting_func=str)


def test_rollouts_of_rows_of_a_task(tiny_model, tmp_path):
    def brevity(completions, answers, **columns):
        assert answers == [["red"]] * len(completions)
        return [-float(len(text)) for text in completions]

    settings = {"num_generations": 2, "max_completion_length": 4, "max_prompt_length": 200, "max_pixels": 784} | QUIET
    args = GRPOConfig(str(tmp_path / "run"), **settings)
    trainer = GRPOTrainer(str(tiny_model), brevity, args, QUESTIONS, QUESTIONS.select([0, 1]), report=True)
    trainer.train()
    assert trainer.evaluate(QUESTIONS.select([2, 3]))["eval_reward"] <= 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {sample["source"] for sample in samples} == {"batch", "held out"}
    assert json.loads((tmp_path / "run" / "report.json").read_text())["info"]["rewards"] == ["brevity x 1"]
    args = GRPOConfig(str(tmp_path / "run"), **settings | {"max_prompt_length": 3})
    with pytest.raises(RecordError, match=r"train_dataset: row 0: .* expected at most 3 \(max_prompt_length\)"):
        GRPOTrainer(str(tiny_model), brevity, args, TURNS)
    with pytest.raises(ValueError, match="max_prompt_length: prompts are counted"):
        GRPOTrainer(str(tiny_model), brevity, args, TURNS.to_iterable_dataset())


@pytest.mark.parametrize(("cls", "config"), [(GRPOTrainer, GRPOConfig), (SFTTrainer, SFTConfig)])
def test_a_data_set_without_any_column_that_is_read(tiny_model, tmp_path, cls, config):
    misspelt = {"train_dataset": Dataset.from_list([{"promt": "a", "completion": "b"}] * 4)}
    misspelt |= {"reward_funcs": len} if cls is GRPOTrainer else {}
    with pytest.raises(ValueError, match="train_dataset: expected a column of prompt, .*, found promt, completion"):
        cls(str(tiny_model), args=config(str(tmp_path), **QUIET | {"per_device_train_batch_size": 8}), **misspelt)


def test_rollouts_where_the_image_of_some_rows_is_null(tiny_model, tmp_path):
    seen = []

    def look(completions, image, **columns):
        seen.extend(image)
        return [0.0] * len(completions)

    rows = [
        {"prompt": row["prompt"], "image": row["images"][0] if number else None} for number, row in enumerate(TURNS)
    ]
    settings = {"num_generations": 2, "max_completion_length": 4} | QUIET | {"per_device_train_batch_size": 8}
    GRPOTrainer(str(tiny_model), look, GRPOConfig(str(tmp_path), **settings), Dataset.from_list(rows)).train()
    assert sorted(image is None for image in seen) == [False] * 6 + [True] * 2


# -- factors ----------------------------------------------------------------------------------------------------------

LABELLED = Dataset.from_list(
    [{"image": picture(number), "factors": ["bright"] if number > 1 else ["dark"]} for number in range(4)]
)
BACKBONE = {"model_type": "resnet", "depths": [1], "hidden_sizes": [8], "embedding_size": 8}


def test_a_factor_predictor_learns_a_data_set(tmp_path):
    args = FactorTrainingConfig(str(tmp_path / "run"), image_size=32, **QUIET)
    trainer = FactorTrainer(BACKBONE, args, LABELLED, LABELLED.select([0, 3]), LABELLED.select([1]), report=True)
    trainer.train()
    trainer.save_model()
    assert load_factor_predictor(str(tmp_path / "run"), "cpu").config.factors == ["bright", "dark"]
    assert {"report.html", "README.md", "factor_results.json"} <= files_of(tmp_path / "run")
    args = FactorTrainingConfig(str(tmp_path / "more"), **QUIET)
    again = FactorTrainer(str(tmp_path / "run"), args, LABELLED, LABELLED)
    assert again.model.config.image_size == 32
    with pytest.raises(RecordError, match="train_dataset, row 3: field 'factors': unknown factor 'bright'"):
        FactorTrainer(BACKBONE, args, LABELLED, LABELLED, factors=["dark"])
    with pytest.raises(TypeError, match="eval_dataset: expected a data set with images and their factors, found None"):
        FactorTrainer(BACKBONE, args, LABELLED)


def test_the_tower_of_a_vlm_has_bounds_in_place_of_a_canvas(tiny_model, tmp_path):
    args = FactorTrainingConfig(str(tmp_path), max_pixels=784, **QUIET)
    trainer = FactorTrainer(str(tiny_model), args, LABELLED, LABELLED)
    assert trainer.model.config.image_processor["size"]["longest_edge"] == 784
    with pytest.raises(RecipeError, match="max_pixels: found 784, and a ImageFactorConfig has none"):
        FactorTrainer(BACKBONE, args, LABELLED, LABELLED)
    with pytest.raises(RecipeError, match="enlarge: found 2, and a TowerFactorConfig has none"):
        FactorTrainer(str(tiny_model), FactorTrainingConfig(str(tmp_path), enlarge=2, **QUIET), LABELLED, LABELLED)


# -- settings ---------------------------------------------------------------------------------------------------------


def keys_of(*classes: type) -> set[str]:
    return {one.name for cls in classes for one in fields(cls) if one.init}


def test_a_key_that_only_scripts_read_is_refused_and_the_page_says_what_replaces_it(tmp_path):
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8").partition("## Settings")[2]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", text, re.MULTILINE)
    named = [key for keys, _ in rows for key in re.findall(r"`([\w*]+)`", keys)]
    for config in CONFIGS:
        for key in sorted(keys_of(*OF_SCRIPTS) - keys_of(config)):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{key}'"):
                config(str(tmp_path), **{key: None})
            assert any(fnmatch(key, pattern) for pattern in named), key
    assert [name for name in named if not any(fnmatch(key, name) for key in keys_of(*OF_SCRIPTS))] == []


def read_by_trainers() -> set[str]:
    """Names of attributes that the code of trainers reads, without what scripts do before a trainer is made."""
    folders = ("", "mixins", "mixins/rollouts", "groups", "labels", "preferences", "report", "vllm_engine")
    files = [path for name in folders for path in (ROOT / "trainers" / name).glob("*.py")]
    files += [ROOT / "trainers" / name for name in ("setup/default_config.py", "run/early_stopping.py")]
    script = {"main", "train_on_groups", "before_imports", "load_stored_groups", "load_checked_preferences"}
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef) and node.name in script:
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for path in files:
        visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_that_is_added_is_read_by_the_trainer(config):
    parent = next(cls for cls in config.__mro__ if cls.__module__.startswith(("trl.", "transformers.")))
    assert issubclass(parent, TrainingArguments)
    by_bounds = {"min_pixels", "max_pixels"}  # trainers.mixins.image_bounds.SIZES
    assert keys_of(config) - keys_of(parent) - read_by_trainers() - by_bounds == set()
