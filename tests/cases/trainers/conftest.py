"""Runs of recipes that are checked and not started."""

import importlib
import json
import sys

import pytest
from refused_recipes import KEYS


@pytest.fixture
def run(tiny_model, tmp_path, capsys, monkeypatch):
    """Function: method and keys of a recipe -> exit status and what was printed; nothing may have been written."""
    monkeypatch.setattr(sys, "argv", ["trainer"])

    def start(method: str, **keys) -> tuple[int, str]:
        output = tmp_path / "never" / "made"
        defaults = {"output_dir": str(output), "use_cpu": True, "bf16": False, "validate_only": True}
        defaults |= {"model_name_or_path": str(tiny_model)} | KEYS[method](tmp_path)
        recipe = tmp_path / "recipe.yaml"
        given = {key: value for key, value in (defaults | keys).items() if value != "leave out"}
        recipe.write_text(json.dumps(given), encoding="utf-8")
        status = 0
        try:
            importlib.import_module(f"trainers.{method}").main(["--config", str(recipe)])
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        assert not output.parent.exists()
        return status, printed.out + printed.err

    return start
