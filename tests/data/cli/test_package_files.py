"""Names of recipes and accelerate configurations: a file of the user's own wins, an unknown one says what there is."""

import re

import pytest

from data.cli.package_files import ACCELERATE_CONFIGS, RECIPES, names_in, shipped_file
from data.errors import UserError
from rewards.eval import read_recipe
from trainers.setup.memory import Spread, planned_spread
from trainers.setup.recipe_keys import keys_of_source
from trainers.setup.recipes import read_recipe as read_training_recipe
from trainers.setup.recipes import recipe_value

NAME = "agent_selection_tiny"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A current folder that holds nothing."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", [NAME, f"{NAME}.yaml", f"recipes/{NAME}.yaml", f"recipes/{NAME}"])
def test_a_name_stands_for_the_file(given):
    assert shipped_file(given, RECIPES) == RECIPES / f"{NAME}.yaml"


@pytest.mark.parametrize("own", [NAME, f"{NAME}.yaml"])
def test_a_file_of_the_users_wins(elsewhere, own):
    (elsewhere / own).write_text("{}", encoding="utf-8")
    assert shipped_file(NAME, RECIPES).resolve() == elsewhere / own


def test_a_folder_of_the_users_does_not(elsewhere):
    (elsewhere / NAME).mkdir()
    assert shipped_file(NAME, RECIPES) == RECIPES / f"{NAME}.yaml"


@pytest.mark.parametrize("given", ["mine.yaml", f"mine/{NAME}.yaml", f"recipes/deeper/{NAME}.yaml", "/dev/stdin"])
def test_other_paths_stay_as_they_are(given):
    assert str(shipped_file(given, RECIPES)) == given


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(UserError) as error:
        shipped_file("zero", ACCELERATE_CONFIGS)
    assert str(error.value) == (
        "zero: no such file, and none of accelerate_configs/ has this name; did you mean 'zero3' or 'zero2'? they are "
        + ", ".join(names_in(ACCELERATE_CONFIGS))
    )


def test_training_scripts_and_commands_take_names(elsewhere):
    keys = keys_of_source("grpo", ("GRPOScriptArguments", "GRPOConfig", "ModelConfig"))
    for words in (["--config", NAME], [f"--config={NAME}"]):
        found = read_training_recipe(keys, [*words, "--max_steps", "3"])
        assert found.argv == ["--config", str(RECIPES / f"{NAME}.yaml"), "--max_steps", "3"]
        assert found.values["output_dir"] == read_recipe(NAME)["output_dir"] == "outputs/grpo"
    assert recipe_value(["--config", "selector_sft"], "policy") == "selector"
    assert recipe_value(["--config", "selector_sfd"], "policy") is None
    with pytest.raises(UserError, match=re.escape("did you mean 'agent_selection_tiny'")):
        read_training_recipe(keys, ["--config", "agent_selection_tniy"])


@pytest.mark.parametrize("given", ["zero3", "accelerate_configs/zero3.yaml"])
def test_the_estimate_finds_the_configuration(given):
    assert planned_spread(given) == Spread(8, 3, False)
