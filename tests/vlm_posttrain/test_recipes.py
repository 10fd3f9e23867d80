"""Recipes that come with the toolkit: listed, shown, copied."""

import re

import pytest

from data.cli.package_files import RECIPES, names_in
from vlm_posttrain.recipes import listed, main

NAME = "agent_selection_tiny"


def test_each_recipe_is_a_line_with_purpose_and_hardware():
    lines = listed().splitlines()
    assert [line.split()[0] for line in lines] == names_in(RECIPES)
    assert [line for line in lines if not re.search(r"  \S.{20,} \[.*(GB|CPU).*\]$", line)] == []


@pytest.mark.parametrize("name", [NAME, f"{NAME}.yaml"])
def test_a_recipe_is_copied_and_never_over_another_file(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / f"{NAME}.yaml"
    for _ in range(2):  # the same once more is no harm
        main([name, "--copy"])
        assert copy.read_bytes() == (RECIPES / copy.name).read_bytes()
        assert capsys.readouterr().out == f"{copy.name}: change what you like, and run it by --config {NAME}\n"
    copy.write_text("mine: true\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=f"error: {NAME}.yaml: there is another file of this name here"):
        main(["--copy", name])
    assert copy.read_text(encoding="utf-8") == "mine: true\n"


def test_a_recipe_is_shown(capsys):
    main([NAME])
    assert capsys.readouterr().out == (RECIPES / f"{NAME}.yaml").read_text(encoding="utf-8")


def test_what_cannot_be_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match="error: agent_selektion_tiny: no such .* did you mean 'agent_selection_tiny'"
    ):
        main(["agent_selektion_tiny", "--copy"])
    with pytest.raises(SystemExit, match="error: --copy: name the recipe to copy"):
        main(["--copy"])
    assert list(tmp_path.iterdir()) == []
