"""What tests of rewards share: a small pool for real agents, selections as texts, and modules of a user's own."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

LONG, OTHER, SHORT = "what colour is the square", "is there a blue circle", "what"
ITEMS = [  # id, grey level, question, what is wrong with it
    (1, 200, LONG, "nothing"),
    (2, 20, LONG, "dark"),
    (3, 210, SHORT, "a question of one word"),
    (4, 200, LONG, "copy of 1"),
    ("e5", 220, OTHER, "nothing"),
]


@pytest.fixture(scope="session")
def pool(tmp_path_factory) -> str:
    """Folder of five plain grey pictures: item 2 is dark, 3 has a short question, 4 repeats 1; 1 and "e5" are good."""
    folder = tmp_path_factory.mktemp("pool")
    lines = []
    for item_id, grey, question, _ in ITEMS:
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(folder / f"{item_id}.png")
        item = {"id": item_id, "image": f"{item_id}.png", "question": question, "answers": ["blue"]}
        lines.append(json.dumps(item))
    (folder / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="session")
def select() -> Callable[..., str]:
    """Function: (agent, prompt) pairs -> a well-formed selection."""

    def write(*pairs: tuple[str, str]) -> str:
        agents = "".join(f"<agent><name>{name}</name><prompt>{prompt}</prompt></agent>" for name, prompt in pairs)
        return f"<selection><reasoning>because</reasoning><agents>{agents}</agents></selection>"

    return write


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """Function: writes a module of the user's own where the command runs, which becomes the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = []

    def write(name: str, source: str) -> None:
        Path(folder, f"{name}.py").write_text(source, encoding="utf-8")
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def read_jsonl() -> Callable[[Path], list[dict]]:
    """Function: a JSONL file -> its objects."""
    return lambda path: [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
