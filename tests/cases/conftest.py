"""Small data and models of the tests of cases."""

import json
import shutil
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "trainers"))  # stored_groups.py, preference_runs.py, factor_runs.py


@pytest.fixture(scope="session")
def often_ending_model(tiny_model, tmp_path_factory):
    """Folder (a text) of the tiny model that ends a completion with one of many tokens, so that lengths differ."""
    folder = tmp_path_factory.mktemp("ending") / "tiny"
    shutil.copytree(tiny_model, folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"eos_token_id": [2, *range(40, 120)]}))
    return str(folder)
