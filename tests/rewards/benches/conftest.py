"""What tests of benches share: a file of published rows with scores, evaluated by the command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data.io.records import write_json, write_jsonl
from rewards import reward_bench


@pytest.fixture
def evaluate(tmp_path) -> Callable[..., dict]:
    """Function: (published rows with scores, ending) -> `summary.json`; which bench it is, is told from the rows."""

    def run(rows: list[dict], ending: str = ".jsonl") -> dict:
        path = tmp_path / f"scored{ending}"
        (write_jsonl if ending == ".jsonl" else write_json)(path, rows)
        reward_bench.main(["--scores", str(path), "--output_dir", str(tmp_path / "out")])
        return json.loads(Path(tmp_path, "out", "summary.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="session")
def image(tmp_path_factory) -> Path:
    """A small picture."""
    path = tmp_path_factory.mktemp("picture") / "grey.png"
    Image.new("RGB", (8, 8), (90, 90, 90)).save(path)
    return path
