"""The set-up of a recipe in the doctor: its trainers leave no trace."""

import pytest
from trl import ModelConfig

from trainers.diagnosis.methods.answers import diagnose_sft
from trainers.diagnosis.methods.set_up import isolated_set_up
from trainers.grpo import GRPOConfig, GRPOScriptArguments
from trainers.setup.recipes import RecipeError

CPU = ("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_pixels", "1024")


@pytest.fixture
def words(tiny_model, report_data, tmp_path) -> list[str]:
    given = ["--model_name_or_path", str(tiny_model), "--dataset_name", str(report_data)]
    given += ["--eval_strategy", "steps", "--eval_steps", "5", "--push_to_hub", "true"]
    return [*given, "--output_dir", str(tmp_path / "run"), *CPU]


def test_a_trainer_makes_no_folder_and_no_repository_and_evaluates_nothing(words, tmp_path):
    """TRL's trainers make the repository of a recipe that pushes at once: without a Hub that would be an error."""
    assert list(diagnose_sft(words, limit=1)) != []
    assert list(tmp_path.iterdir()) == []


def test_what_is_changed_of_a_recipe(words, tmp_path):
    logged = ["--log_completions", "true", "--log_completions_hub_repo", "me/completions"]
    others = ["--reward_funcs", "xml_format", "--validate_only", "true"]
    classes = (GRPOScriptArguments, GRPOConfig, ModelConfig)
    with isolated_set_up("GRPO", classes, [*words, *others, *logged]) as (script, args, _, run):
        assert run == str(tmp_path / "run") != args.output_dir
        assert (script.validate_only, args.push_to_hub, args.log_completions_hub_repo) == (False, False, None)
    wrong = [*words, *others, "--metric_for_best_model", "nothing"]
    with pytest.raises(RecipeError, match="metric_for_best_model"), isolated_set_up("GRPO", classes, wrong):
        pass
