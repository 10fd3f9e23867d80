"""A small example-selection data set with pools, embeddings and untrained selectors, and a VLM that echoes."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

COLOURS = ("red", "blue", "teal", "gray", "green", "black", "yellow", "brown")
EXAMPLES, QUERIES, POOL = 24, 12, 10


class EchoVLM:
    """Answers with the answer of the example that is shown last, as often as asked; counts what it is asked."""

    def __init__(self):
        self.images = SimpleNamespace(key=str)
        self.model = SimpleNamespace(device="cpu")
        self.asked = []

    def generate(self, requests, **settings):
        from data.vqa import common_answer

        self.asked.append(len(requests))
        shown = [common_answer(request.examples[-1]) if request.examples else "nothing" for request in requests]
        return [f" {text}\nQuestion:" for text in shown]

    def answer_probabilities(self, requests):
        self.asked.append(len(requests))
        return [0.5 if request.examples else 0.25 for request in requests]

    @staticmethod
    def first_answer(text):
        from rollouts.frozen_vlm.requests import first_answer

        return first_answer(text)


@pytest.fixture
def echo_vlm() -> EchoVLM:
    return EchoVLM()


def _use(patch: pytest.MonkeyPatch, vlm: EchoVLM) -> EchoVLM:
    from rollouts.frozen_vlm import answers

    def open_book(arguments, folder, server=None):
        generation = {"max_new_tokens": arguments.max_new_tokens}
        return answers.AnswerBook(vlm, {"model": str(arguments.model)}, folder, generation)

    patch.setattr(answers, "open_answer_book", open_book)
    return vlm


@pytest.fixture
def echoing(monkeypatch, echo_vlm) -> EchoVLM:
    """Commands of this process use the echoing VLM."""
    return _use(monkeypatch, echo_vlm)


@pytest.fixture(scope="module")
def echoing_module() -> Iterator[EchoVLM]:
    """The same for fixtures of a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield _use(patch, EchoVLM())


def _write_records(folder: Path) -> None:
    from PIL import Image

    from data.io.records import write_jsonl

    for split, count in (("train", EXAMPLES), ("test", QUERIES)):
        rows = []
        for number in range(count):
            colour = COLOURS[(number * 5 + len(split)) % 8]
            name = f"{split}-{number}.png"
            Image.new("RGB", (16, 16), colour).save(folder / name)
            answers = [colour] * 6 + ["blue"] * 4 if number % 3 == 0 else [colour] * 10
            rows.append({"id": f"{split}-{number}", "image": name, "question": f"color {number}?", "answers": answers})
        write_jsonl(folder / f"{split}.jsonl", rows)


def _write_table(path: Path, split: str, count: int, seed: int) -> None:
    from data.candidates.embedding_table import EmbeddingTable, Part

    values = np.random.default_rng(seed).normal(size=(count, 12)).astype(np.float32)
    for columns in (slice(0, 4), slice(4, 12)):
        values[:, columns] /= np.linalg.norm(values[:, columns], axis=1, keepdims=True)
    parts = (Part(name="image", width=4, encoder="a"), Part(name="text", width=8, encoder="b"))
    EmbeddingTable([f"{split}-{number}" for number in range(count)], values, parts).save(path)


def _write_selectors(folder: Path) -> None:
    from models.selectors.pointer import PointerSelector, PointerSelectorConfig

    for name, settings in (
        ("first", {"seed": 1}),
        ("second", {"seed": 2, "history": "gru"}),
        ("stop", {"stop": True}),
    ):
        config = PointerSelectorConfig(embedding_size=12, hidden_size=16, **settings)
        PointerSelector(config).save_pretrained(folder / name)


@pytest.fixture(scope="session")
def selection_files(tmp_path_factory) -> Path:
    """Folder with `train.jsonl` (examples), `test.jsonl`, `pools-*.jsonl`, tables, and three selectors."""
    from data.candidates.pools import write_pools

    folder = tmp_path_factory.mktemp("selection")
    _write_records(folder)
    examples = [f"train-{number}" for number in range(EXAMPLES)]
    for seed, (split, count) in enumerate((("train", QUERIES), ("test", QUERIES))):
        rng = random.Random(seed)
        ids = [f"{split}-{number}" for number in range(count)]
        pools = {item: rng.sample([other for other in examples if other != item], POOL) for item in ids}
        write_pools(folder / f"pools-{split}.jsonl", pools, "random")
        _write_table(folder / f"{split}.safetensors", split, EXAMPLES if split == "train" else QUERIES, seed)
    _write_selectors(folder)
    return folder
