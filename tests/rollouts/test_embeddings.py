"""Embedding VQA records: the cache by content, tables, and the command."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from data.candidates.embedding_table import EmbeddingTable
from data.factor_labels.text_encoder import BUNDLED_MINILM
from data.io.images import ImageError
from data.io.records import RecordError, write_jsonl
from data.vqa import VqaRecord
from models.embeddings import Encoder
from rollouts.embeddings import embed_records, load_examples, main, record_text
from rollouts.retrieval import embedding_cache
from rollouts.retrieval.embedding_cache import embed_images, embed_texts


class Counting(Encoder):
    """Encodes a text as its length and first letter, an image as its mean colour, and counts what it is given."""

    can_text = can_images = True

    def __init__(self, fingerprint: str = "f" * 64):
        super().__init__("counting", fingerprint, 3)
        self.texts, self.images = [], 0

    def encode_texts(self, texts):
        self.texts += texts
        return self._unit([[len(text), ord(text[0]), 1] for text in texts])

    def encode_images(self, images):
        self.images += len(images)
        return self._unit([np.asarray(image).mean(axis=(0, 1)) + 1 for image in images])

    @staticmethod
    def _unit(rows) -> np.ndarray:
        vectors = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Red, green and blue; the fourth has the bytes of the first."""
    paths = [str(tmp_path / f"{name}.png") for name in ("red", "green", "blue", "again")]
    for path, colour in zip(paths, ("red", "green", "blue", "red"), strict=True):
        Image.new("RGB", (16, 16), colour).save(path)
    return paths


def direct(paths: list[str]) -> np.ndarray:
    return Counting().encode_images([Image.open(path) for path in paths])


# -- the cache --------------------------------------------------------------------------------------------------------


def test_equal_texts_are_encoded_once_and_rows_keep_their_order(tmp_path):
    texts = ["red", "a red circle", "red", "b", "red"]
    encoder = Counting()
    vectors = embed_texts(encoder, texts, tmp_path)
    assert encoder.texts == ["red", "a red circle", "b"]
    np.testing.assert_array_equal(vectors, Counting().encode_texts(texts))
    np.testing.assert_array_equal(embed_texts(Counting(), texts), vectors)  # without a cache
    assert embed_texts(encoder, [], tmp_path).shape == (0, 3)


def test_a_second_run_encodes_only_what_is_new(tmp_path):
    first = embed_texts(Counting(), ["red", "blue"], tmp_path)
    encoder = Counting()
    vectors = embed_texts(encoder, ["green!", "blue", "red"], tmp_path)
    assert encoder.texts == ["green!"]
    np.testing.assert_array_equal(vectors[[2, 1]], first)
    np.testing.assert_array_equal(vectors, Counting().encode_texts(["green!", "blue", "red"]))


def test_another_encoder_shares_nothing(tmp_path):
    embed_texts(Counting("a" * 64), ["red"], tmp_path)
    other = Counting("b" * 64)
    embed_texts(other, ["red"], tmp_path)
    assert other.texts == ["red"]


def test_a_text_is_not_taken_for_an_image_of_the_same_bytes(tmp_path, pictures):
    path = tmp_path / "text.png"
    path.write_bytes(Path(pictures[0]).read_bytes())
    encoder = Counting()
    embed_images(encoder, [[str(path)]], tmp_path / "cache")
    text = path.read_bytes().decode("latin-1")
    embed_texts(encoder, [text], tmp_path / "cache")
    assert (len(encoder.texts), encoder.images) == (1, 1)


def test_images_that_occur_several_times_are_encoded_once(tmp_path, pictures):
    groups = [[pictures[2]], [pictures[0]], [pictures[2]], [pictures[3]], [pictures[1]]]
    encoder = Counting()
    vectors = embed_images(encoder, groups, tmp_path / "cache")
    assert encoder.images == 3  # the copy under another name is the same content
    np.testing.assert_array_equal(vectors, direct([path for [path] in groups]))
    again = Counting()
    np.testing.assert_array_equal(embed_images(again, groups[::-1], tmp_path / "cache"), vectors[::-1])
    assert again.images == 0


def test_a_picture_that_changes_under_its_name_is_encoded_anew(tmp_path, pictures):
    embed_images(Counting(), [[pictures[0]]], tmp_path / "cache")
    Image.new("RGB", (16, 16), "yellow").save(pictures[0])
    encoder = Counting()
    vectors = embed_images(encoder, [[pictures[0]]], tmp_path / "cache")
    assert encoder.images == 1
    np.testing.assert_array_equal(vectors, direct(pictures[:1]))


def test_every_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    names = ["empty.png", "text.png", "missing.png"]
    with pytest.raises(RecordError) as found:
        embed_images(Counting(), [[str(tmp_path / name)] for name in names])
    assert all(f"record {number}: field 'images': {tmp_path / name}: " in str(found.value)
               for number, name in enumerate(names))  # fmt: skip
    assert str(found.value).startswith("3 of 3 images cannot be read:")


def test_a_picture_that_changes_while_it_is_in_use_is_an_error(pictures, monkeypatch):
    read, seen = embedding_cache.image_bytes_digest, []

    def replaced_after_the_first_look(source):
        content = read(source)
        if not seen:
            Image.new("RGB", (16, 16), "yellow").save(pictures[0])
        seen.append(source)
        return content

    monkeypatch.setattr(embedding_cache, "image_bytes_digest", replaced_after_the_first_look)
    with pytest.raises(ImageError, match=r"red\.png: changed while it was in use"):
        embed_images(Counting(), [[pictures[0]]])


def test_pictures_from_data_sets_are_known_by_bytes_or_pixels(pictures, tmp_path):
    content = Path(pictures[0]).read_bytes()
    sources = [
        {"bytes": content, "path": None},
        {"bytes": None, "path": pictures[1]},
        Image.open(pictures[2]),
        Image.open(pictures[2]).convert("RGBA"),
        Image.new("RGB", (16, 17), "blue"),
    ]
    encoder = Counting()
    vectors = embed_images(encoder, [[source] for source in sources], tmp_path / "cache")
    np.testing.assert_array_equal(vectors, direct([*pictures[:3], pictures[2], pictures[2]]))
    assert encoder.images == 4  # equal pixels count once, whatever the mode; another shape is another image


def test_several_images_of_a_record_count_as_their_mean(pictures):
    red, green, blue = direct(pictures[:3])
    vectors = embed_images(Counting(), [pictures[:2], pictures[2:3], [pictures[0]] * 3])
    both = (red + green) / np.linalg.norm(red + green)
    np.testing.assert_allclose(vectors, [both, blue, red], atol=1e-6)
    with pytest.raises(ValueError, match="images of record 1: their embeddings cancel out"):
        embedding_cache._means(np.array([[1, 0], [-1, 0]], dtype=np.float32), np.array([0, 0, 1]), [1, 2])


def test_what_was_encoded_before_an_interruption_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "TEXT_CHUNK", 2)
    texts = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]

    class Stopped(Counting):
        def encode_texts(self, texts):
            if len(self.texts) == 4:
                raise KeyboardInterrupt
            return super().encode_texts(texts)

    with pytest.raises(KeyboardInterrupt):
        embed_texts(Stopped(), texts, tmp_path)
    encoder = Counting()
    np.testing.assert_array_equal(embed_texts(encoder, texts, tmp_path), Counting().encode_texts(texts))
    assert encoder.texts == texts[4:]


def test_long_work_is_stored_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "TEXT_CHUNK", 2)
    monkeypatch.setattr(embedding_cache, "SHARD_ROWS", 4)
    embed_texts(Counting(), ["a" * length for length in range(1, 12)], tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3  # 4, 4 and 3 rows
    encoder = Counting()
    embed_texts(encoder, ["a" * length for length in range(1, 12)], tmp_path)
    assert encoder.texts == []


def _embed(folder: Path, first: int) -> None:
    embed_texts(Counting(), [f"text {number}" for number in range(first, first + 40)], folder)


def test_processes_share_a_cache(tmp_path):
    """Four at once, whose texts overlap; two of them do the very same work."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_embed, args=(tmp_path, first)) for first in (0, 0, 20, 40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    encoder = Counting()
    texts = [f"text {number}" for number in range(80)]
    np.testing.assert_array_equal(embed_texts(encoder, texts, tmp_path), Counting().encode_texts(texts))
    assert encoder.texts == []
    assert list(tmp_path.rglob(".*")) == []  # no temporary files


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (None, "not readable as safetensors"),
        ({"values": np.zeros((1, 3), np.float32)}, "expected the tensors keys, values; keys is missing"),
        ({"values": np.zeros((2, 3), np.float32), "keys": np.zeros((1, 32), np.uint8)}, "expected 3 numbers a key"),
        ({"values": np.zeros((1, 4), np.float32), "keys": np.zeros((1, 32), np.uint8)}, "expected 3 numbers a key"),
    ],
)
def test_a_broken_file_of_the_cache_is_named(tmp_path, tensors, problem):
    embed_texts(Counting(), ["red"], tmp_path)
    [path] = tmp_path.rglob("*.safetensors")
    path.write_bytes(b"nothing") if tensors is None else save_file(tensors, path)
    with pytest.raises(RecordError, match=problem) as caught:
        embed_texts(Counting(), ["red"], tmp_path)
    assert caught.value.problems[0].startswith(f"{path}: ")


# -- records ----------------------------------------------------------------------------------------------------------


def record(number, question: str, image: str, answers=("red",)) -> VqaRecord:
    return VqaRecord(id=number, question=question, images=[image], answers=list(answers))


def test_a_table_holds_image_and_text_side_by_side(pictures):
    records = [record(5, "what?", pictures[1]), record("x", "is it?", pictures[0], ["no", "yes", "yes"])]
    encoder = Counting()
    table = embed_records(records, encoder, encoder, text="question_answer")
    assert table.ids == [5, "x"]
    assert [(part.name, part.width) for part in table.parts] == [("image", 3), ("text", 3)]
    np.testing.assert_array_equal(table.part("image"), direct([pictures[1], pictures[0]]))
    np.testing.assert_array_equal(table.part("text"), Counting().encode_texts(["what? red", "is it? yes"]))
    assert embed_records(records, encoder).width == embed_records(records, image_encoder=encoder).width == 3
    with pytest.raises(ValueError, match="expected a text encoder, an image encoder, or both"):
        embed_records(records)
    assert record_text(records[1]) == "is it?"


def test_records_need_ids_of_their_own(tmp_path, pictures):
    rows = [{"id": number, "question": "?", "answers": ["a"], "image": pictures[0]} for number in (1, 2, None, 1)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(RecordError) as caught:
        load_examples(tmp_path / "a.jsonl")
    assert caught.value.problems == [
        f"{tmp_path}/a.jsonl, record 3: field 'id': missing; records are referred to by it",
        f"{tmp_path}/a.jsonl, record 4: field 'id': 1 is also record 1's",
    ]
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(RecordError, match="expected at least one record, found none"):
        load_examples(tmp_path / "b.jsonl")


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, capsys):
    """Function: rows and options -> what `rollouts.embeddings` says at its end; its output is `t.safetensors`."""

    def run(rows: list[dict], *options: str) -> str:
        write_jsonl(tmp_path / "d.jsonl", rows)
        capsys.readouterr()
        try:
            main(["--dataset_name", str(tmp_path / "d.jsonl"), *options, "--output", str(tmp_path / "t.safetensors")])
        except SystemExit as end:
            return str(end.code) if isinstance(end.code, str) else capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_the_command_writes_a_table(command, tmp_path, pictures, tiny_model):
    rows = [
        {"id": number, "question": question, "answers": ["red"], "image": image}
        for number, (question, image) in enumerate(zip(["what?", "is it red?", "what?"], pictures, strict=False))
    ]
    options = ["--text_encoder", BUNDLED_MINILM, "--image_encoder", str(tiny_model), "--device", "cpu"]
    options += ["--cache_dir", str(tmp_path / "cache")]
    assert "3 embeddings of 416 numbers (image 32 + text 384) written to" in command(rows, *options)
    first = EmbeddingTable.load(tmp_path / "t.safetensors")
    assert first.ids == [0, 1, 2]
    np.testing.assert_array_equal(first.part("text")[0], first.part("text")[2])
    assert not np.array_equal(first.part("image")[0], first.part("image")[2])
    stored = sorted((tmp_path / "cache").rglob("*.safetensors"))
    command(rows[::-1], *options)
    second = EmbeddingTable.load(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(second.values[::-1], first.values)
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == stored  # nothing new was encoded


def test_the_command_says_what_is_wrong(command, tmp_path, pictures, tiny_model):
    row = {"id": 1, "question": "what?", "answers": ["red"], "image": pictures[0]}
    assert "give --text_encoder, --image_encoder, or both" in command([row])
    missing = command([row, {**row, "id": 2, "image": "none.png"}], "--image_encoder", "never/loaded")
    place = f"{tmp_path}/d.jsonl, record 2: field 'images': {tmp_path}/none.png"
    assert missing == f"error: 1 of 2 images cannot be read:\n{place}: no such image file"
    found = command([row], "--text_encoder", str(tiny_model))
    assert found == f"error: --text_encoder {tiny_model}: this model does not encode texts"
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = command([{**row, "image": "broken.png"}], "--image_encoder", str(tiny_model), "--cache_dir", "")
    place = f"{tmp_path}/d.jsonl, record 1: field 'images': {tmp_path}/broken.png"
    assert found == f"error: 1 of 1 image cannot be read:\n{place}: not an image, or of an unknown format"
