"""`--help` and the command line of training scripts: only keys that work, and one message for what does not."""

import sys

import pytest
from places import ROOT

from trainers.setup.help import REFUSED, before_imports, help_text
from trainers.setup.recipe_keys import keys_of_classes, keys_of_source
from trainers.setup.recipes import RecipeError, parse_recipe, read_recipe, recipe_value

TRAINERS = ROOT / "trainers"
CLASSES = {
    "grpo": ("GRPOScriptArguments", "GRPOConfig", "ModelConfig"),
    "sft": ("DataArguments", "SFTConfig", "ModelConfig"),
    "rce": ("GroupArguments", "RCEConfig", "ModelConfig"),
    "offline_grpo": ("GroupArguments", "OfflineGRPOConfig", "ModelConfig"),
    "reward": ("PreferenceArguments", "RewardConfig", "ModelConfig"),
    "factors": ("FactorArguments", "FactorTrainingConfig", "ModelConfig"),
}
SELECTOR_SFT = ("GroupArguments", "SelectorSFTConfig", "ModelConfig")


def classes_of(script: str, names: tuple[str, ...]) -> tuple[type, ...]:
    from importlib import import_module

    module = import_module(f"trainers.{script}")
    return tuple(getattr(module, name) for name in names)


def listed(text: str) -> list[str]:
    return [line.split(":")[0].strip() for line in text.splitlines() if line.startswith("  ") and " = " in line]


@pytest.mark.parametrize(("script", "names"), [*CLASSES.items(), ("sft", SELECTOR_SFT)])
def test_p05_keys_read_from_source_are_those_of_the_classes(script, names):
    """So that what is checked before TRL is imported is what is parsed afterwards."""
    of_source, of_classes = keys_of_source(script, names), keys_of_classes(classes_of(script, names))
    assert set(of_source) == set(of_classes)
    for name, key in of_classes.items():
        found = of_source[name]
        if not name.startswith("log_level"):  # its choices are computed
            assert found.choices == key.choices, name
        assert found.required == key.required, name
        if name != "optim":  # its default is computed
            assert found.default == key.default, name


VALUES = {
    "selector": {"selector": {"hidden_size": 8}},
    "backbone": {"backbone": {"model_type": "resnet"}},
    "model_init_kwargs": {"model_init_kwargs": {"revision": "v2"}},
    "vllm_kwargs": {"vllm_kwargs": {"dtype": "float16"}},
    "policy": {"policy": "vlm"},
    "agents": {"agents": ["blur_filter"]},
    "score_min": {"score_min": -1.0},
    "reference_revision": {"reference_revision": "v2", "reference_model": "somewhere"},
    "kl_target_min": {"kl_target_min": 0.01},
    "early_stopping_patience": {"early_stopping_patience": 2, "eval_strategy": "steps", "save_strategy": "steps"},
    "query_splits": {"query_splits": ["train"], "query_data": "records"},
    "example_split": {"example_split": "train", "example_data": "records"},
    "reward_weights": {"reward_weights": [1.0], "reward_funcs": ["xml_format"]},
    "task_data": {"task_data": "rows", "policy": "vlm"},
    "adaptive_kl": {"adaptive_kl": True, "beta": 0.1},
    "load_weights_only": {"load_weights_only": True, "resume_from_checkpoint": "somewhere"},
    "head_activation": {"head_activation": "tanh"},
    "rollout_slots": {"rollout_slots": 2, "rollout_stream": "own"},
}
BY_TYPE = {"int": 2, "float": 0.25, "bool": True, "str": "text", "list[str]": ["one"], "list[int]": [1],
           "list[float]": [1.0], "dict": {"hidden_size": 8}}  # fmt: skip


def value_for(key):
    """A value that the key can have, beside its default."""
    if isinstance(key.default, bool):
        return not key.default
    if isinstance(key.default, int | float | str):
        return key.default
    return next(
        value for name, value in BY_TYPE.items() if name in key.shown_type.replace("list[str | dict]", "list[str]")
    )


@pytest.mark.parametrize(("script", "names"), [*CLASSES.items(), ("sft", SELECTOR_SFT)])
def test_p05_every_key_that_help_lists_is_accepted(script, names):
    import json

    keys = keys_of_source(script, names)
    shown = listed(help_text(TRAINERS / f"{script}.py", keys.values()))
    assert len(shown) > 12
    assert set(shown) <= set(keys)
    needed = {"dataset_name": "somewhere", "use_cpu": True, "bf16": False}
    needed |= {"reward_funcs": ["xml_format"]} if script == "grpo" else {}
    for name in shown:
        given = needed | VALUES.get(name, {name: value_for(keys[name])})
        argv = []
        for key, value in given.items():
            words = value if isinstance(value, list) else [value]
            argv += [f"--{key}", *(json.dumps(one) if isinstance(one, dict | bool) else str(one) for one in words)]
        parsed = parse_recipe(classes_of(script, names), argv)
        assert any(hasattr(part, name) for part in parsed), name


def test_p05_keys_of_other_classes_are_not_listed():
    shown = {script: listed(help_text(TRAINERS / f"{script}.py", keys_of_source(script, names).values()))
             for script, names in CLASSES.items()}  # fmt: skip
    for script, key in [("offline_grpo", "temperature_start"), ("reward", "processor"), ("reward", "labelled"),
                        ("offline_grpo", "top1"), ("sft", "best_beams"), *REFUSED]:  # fmt: skip
        assert key not in shown[script]
    assert "temperature_start" in shown["rce"]


WRONG = [
    (["--max_stepz", "5"], "unknown key 'max_stepz'; did you mean 'max_steps'"),
    (["--learning-rat", "5"], "unknown key 'learning-rat'; did you mean 'learning_rate'"),
    (["--numgenerations", "5"], "unknown key 'numgenerations'; did you mean 'num_generations'"),
    (["--lr", "1e-5"], "unknown key 'lr'; did you mean 'learning_rate'"),
    (["--batch-size", "5"], "unknown key 'batch-size'; did you mean 'per_device_train_batch_size'"),
    (["--xyzzy", "5"], "unknown key 'xyzzy'; `--help` lists"),
    (["--max_steps", "many"], "--max_steps: expected int, found 'many'"),
    (["--max_steps", "1.5"], "--max_steps: expected int, found '1.5'"),
    (["--max_steps"], "--max_steps: expected int, found no value"),
    (["--max_steps", "1", "2"], "--max_steps: expected one value, found 2: 1 2"),
    (["--learning_rate", "fast"], "--learning_rate: expected float, found 'fast'"),
    (["--use_cpu", "perhaps"], "--use_cpu: expected bool, found 'perhaps'"),
    (["--reward_weights", "1", "b"], "--reward_weights: expected list[float] | None, found ['1', 'b']"),
    (["--model_init_kwargs", "{revision"], "--model_init_kwargs: expected a mapping as JSON"),
    (["recipes/mine.yaml"], "expected --KEY VALUE, found 'recipes/mine.yaml'; a recipe is given by --config FILE"),
    (["--config"], "--config: expected one file, found none"),
    (["--config", "a.yaml", "b.yaml"], "--config: expected one file, found a.yaml b.yaml"),
    (["--config", "a.yaml", "--config=b.yaml"], "--config: expected one file, found a.yaml b.yaml"),
    (["--max_steps", "1", "--max_steps=1"], "--max_steps: given twice"),
    (["--max_steps", "1", "--max-steps", "2"], "--max_steps: given as --max_steps and as --max-steps"),
    (["--no_gradient_checkpointing", "--gradient_checkpointing"], "as --no_gradient_checkpointing and as --grad"),
    (["--run_name", "a\udcff"], "'a\\udcff': not UTF-8 text at character 1"),
    (["--reward_funcs", "a", "\ud800"], "'\\ud800': not UTF-8 text"),
    ([], "command line: key 'dataset_name' is missing"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_p06_one_message_for_what_is_wrong(words, message):
    keys = keys_of_source("grpo", CLASSES["grpo"])
    with pytest.raises(RecipeError) as error:
        read_recipe(keys, words)
    text = str(error.value)
    assert message in text
    assert text.startswith("command line: ")
    assert len(text) < 400
    assert "\n" not in text


def test_p06_at_most_three_keys_are_named():
    keys = keys_of_source("grpo", CLASSES["grpo"])
    with pytest.raises(RecipeError) as error:
        read_recipe(keys, ["--vllm_servr_port", "1"])
    assert sum(f"'{name}'" in str(error.value) for name in keys) <= 3


def test_p06_what_argparse_itself_refuses_is_one_message(monkeypatch):
    from trainers.setup import recipes

    monkeypatch.setattr(recipes, "_check_command_line", lambda argv, keys: {"dataset_name": "x"})
    with pytest.raises(RecipeError) as error:
        parse_recipe(classes_of("grpo", CLASSES["grpo"]), ["--dataset_name", "x", "--max_steps", "many"])
    assert str(error.value) == "command line: argument --max_steps/--max-steps: invalid int value: 'many'"


def test_p06_right_command_lines():
    keys = keys_of_source("grpo", CLASSES["grpo"])
    words = ["--dataset_name=x", "--max-steps", "-1", "--reward_funcs", "a", '{"name": "b"}', "--use_cpu"]
    words += ["--no_gradient_checkpointing", "--model_init_kwargs", '{"revision": "v2"}', "--report_to", "none"]
    values = read_recipe(keys, words).values
    assert values["max_steps"] == -1
    assert values["reward_funcs"] == ["a", '{"name": "b"}']
    assert values["use_cpu"] is True
    assert values["gradient_checkpointing"] is False
    assert values["model_init_kwargs"] == {"revision": "v2"}


@pytest.mark.parametrize("words", [["--policy", "selector"], ["--policy=selector"]])
def test_a_key_that_decides_on_the_others_is_read_as_all_are(words):
    assert recipe_value(["--dataset_name", "x", *words, "--use_cpu"], "policy") == "selector"


@pytest.mark.parametrize("words", [["--validate_only"], ["--validate_only=true"], ["--validate-only", "yes"]])
def test_p06_a_recipe_for_a_gpu_is_validated_without_one_however_that_is_written(words, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    given = ["--dataset_name", "x", "--output_dir", str(tmp_path / "out"), *words]
    assert parse_recipe(classes_of("sft", CLASSES["sft"]), given)[1].use_cpu


def test_p06_a_script_ends_with_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grpo.py", "--dataset_name", "x", "--loss_type", "GRPO"])
    with pytest.raises(SystemExit) as stop:
        before_imports(str(TRAINERS / "grpo.py"), "GRPO", *CLASSES["grpo"])
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: command line: --loss_type: expected one of grpo, dr_grpo")
    assert printed.err.count("\n") == 1
