"""What a recipe trains by is told by its first lines, or its keys."""

import pytest
from places import ROOT

from data.errors import UserError
from trainers.diagnosis.methods.choice import METHODS, method_of


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_the_toolkit(path):
    command = next(line for line in path.read_text(encoding="utf-8").splitlines() if "--config" in line)
    wanted = command.split("vlm-posttrain ")[1].split()[0]
    if wanted in METHODS:
        assert method_of(path, []) == wanted
    else:
        with pytest.raises(UserError, match=f"its first lines say {wanted}; expected --method grpo, sft"):
            method_of(path, [])


def test_recipes_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("reward_funcs: [xml_format]\n", encoding="utf-8")
    assert method_of(path, ["reward_funcs"]) == "grpo"
    with pytest.raises(UserError, match="its first lines do not say; expected --method"):
        method_of(path, [])
    path.write_text("#   python trainers/offline_grpo.py --config mine.yaml\n", encoding="utf-8")
    assert method_of(path, []) == "offline-grpo"


def test_what_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match="nothing.yaml: no such file; expected a recipe"):
        method_of(tmp_path / "nothing.yaml", [])
    with pytest.raises(UserError, match="a folder; expected a recipe"):
        method_of(tmp_path, [])
