"""Pictures that cannot be read: all are named at once, or left out, counted and written down; copies of a picture.

Broken are: a truncated JPEG, a text named .png, a folder, a file that is not there, one of zero bytes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import easy_factors, factors, quality_reports
from data.factors import load_factor_set, load_labelled
from data.io.image_sources import SourceItem, load_splits, picture_keys
from data.io.records import ImageCount, RecordError, read_rows, write_jsonl
from data.io.unreadable import LeftOut, Skipping
from data.reports.measurements import measure_pool
from data.reports.pool import Item, Pool, load_pool
from data.tasks import load_rows
from data.vqa import load_records
from models.embeddings import Encoder
from rewards.registry import build_rewards
from rewards.scoring.columns import check_columns
from rollouts import embeddings, pools
from rollouts.embeddings import EmbeddingTable


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def _truncate(path: Path) -> None:
    _picture(9).save(path)
    path.write_bytes(path.read_bytes()[:-40])


BROKEN = {
    "cut.jpg": (_truncate, "cannot be decoded (image file is truncated"),
    "text.png": (lambda path: path.write_text("no picture"), "not an image, or of an unknown format"),
    "folder.png": (lambda path: path.mkdir(), "expected an image file, found a folder"),
    "missing.png": (lambda path: None, "no such image file"),
    "empty.png": (lambda path: path.touch(), "empty, 0 bytes"),
}
GOOD = ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]
NAMES = ["0.png", "cut.jpg", "1.png", "text.png", "folder.png", "2.png", "3.png", "missing.png", "4.png", "empty.png",
         "5.png"]  # fmt: skip
LEFT_OUT = [1, 3, 4, 7, 9]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Folder with six good pictures and one of each that is broken."""
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(GOOD):
        _picture(number).save(folder / name)
    for name, (make, _) in BROKEN.items():
        make(folder / name)
    return folder


def _rows(images: Path, **fields) -> list[dict]:
    return [
        {"image": str(images / name), "question": f"what is {number}?", "answers": ["red"]}
        | {key: value(number) for key, value in fields.items()}
        for number, name in enumerate(NAMES)
    ]


@pytest.fixture
def records(images, tmp_path) -> Path:
    """VQA records with ids, a line for each of `NAMES`."""
    write_jsonl(tmp_path / "train.jsonl", _rows(images, id="q{}".format))
    return tmp_path / "train.jsonl"


def _ending(main, arguments: list) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return str(end.value)


def _assert_all_named(message: str, places: dict[str, str] | None = None) -> None:
    """Every broken picture stands in the message with its problem, and where it is used."""
    for name, (_, problem) in BROKEN.items():
        [line] = [line for line in message.splitlines() if f"{name}: {problem}" in line]
        assert line.startswith((places or {}).get(name, ""))


def _left_out(path: Path, name: str) -> dict:
    return json.loads(path.read_text())[name]


@pytest.mark.parametrize("name", ["copy.png", "same.bmp", "same.tiff", "same.webp"])
def test_f16_a_picture_in_another_file_has_the_same_key(tmp_path, name):
    _picture(0).save(tmp_path / "a.png")
    _picture(0).save(tmp_path / name, lossless=True)
    _picture(1).save(tmp_path / "other.png")
    first, second, other = picture_keys(str(tmp_path / file) for file in ("a.png", name, "other.png"))
    assert first == second != other


def test_f16_a_picture_in_two_formats_lands_in_one_split(tmp_path):
    for seed in range(12):
        _picture(seed).save(tmp_path / f"{seed}.png")
        _picture(seed).save(tmp_path / f"copy-{seed}.bmp")
    splits = load_splits(str(tmp_path), (0.5, 0.25, 0.25), seed=0)
    pictures = [set(picture_keys(item.image for item in items)) for items in splits.values()]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == 12


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a2_unreadable_images_of_a_folder_are_named_at_once(tmp_path, content):
    _picture(0).save(tmp_path / "good.png")
    for number in range(3):
        (tmp_path / f"bad-{number}.png").write_bytes(content)
    with pytest.raises(RecordError) as caught:
        load_splits(str(tmp_path), (0.5, 0.25, 0.25), seed=0)
    assert len(caught.value.problems) == 3
    assert all(f"bad-{number}.png" in str(caught.value) for number in range(3))


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a2_all_unreadable_images_of_rows_are_counted_and_named(records):
    with pytest.raises(RecordError) as caught:
        load_records(records)
    assert str(caught.value).startswith("5 of 11 images cannot be read:\n")
    places = {NAMES[position]: f"{records}:{position + 1}: field 'images': " for position in LEFT_OUT}
    _assert_all_named(str(caught.value), places)


def test_a2_of_many_unreadable_images_the_first_are_named_and_the_others_counted(tmp_path):
    rows = [{"image": f"{number}.png", "question": "?", "answers": ["a"]} for number in range(1200)]
    rows[3] = {"question": "?"}
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(RecordError) as caught:
        load_records(tmp_path / "a.jsonl")
    first, second, *_, last = str(caught.value).splitlines()
    assert first == "1,199 of 1,199 images cannot be read; 2 problems beside:"
    assert second.startswith(f"{tmp_path}/a.jsonl:4: field 'images': List")
    shown = str(caught.value).count("no such image file")
    assert last == f"... and {1199 - shown:,} more problems"
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("read", [load_records, lambda path, left_out: load_rows(path, "", left_out=left_out)])
def test_a2_rows_that_go_by_their_position_keep_it(images, tmp_path, read):
    write_jsonl(tmp_path / "a.jsonl", _rows(images))
    left_out = LeftOut()
    kept = read(tmp_path / "a.jsonl", left_out=left_out)
    ids = [row["id"] if isinstance(row, dict) else row.id for row in kept]
    assert ids == [0, 2, 5, 6, 8, 10]
    assert left_out.positions == LEFT_OUT
    assert left_out.ids == set(LEFT_OUT)
    assert (left_out.images, left_out.rows) == (ImageCount(11, 5), 11)


@pytest.mark.parametrize("row", [{"prompt": "what is it?"}, {"report": "r", "ground_truth_agents": []}])
def test_a2_rows_of_every_task_are_left_out(images, tmp_path, row):
    more = {"ground_truth_filtered_data": []} if "report" in row else {}
    write_jsonl(tmp_path / "a.jsonl", [{**row, **more, "image": str(images / name)} for name in NAMES])
    kept = load_rows(tmp_path / "a.jsonl", "", left_out=LeftOut())
    assert [row["id"] for row in kept] == [0, 2, 5, 6, 8, 10]


def test_a2_a_data_set_without_a_readable_image_is_an_error(images, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [row for row in _rows(images) if Path(row["image"]).name in BROKEN])
    with pytest.raises(RecordError, match="^5 of 5 images cannot be read:\n"):
        load_records(tmp_path / "a.jsonl", left_out=Skipping(True).of("records"))


def test_a2_other_problems_stay_errors_when_images_may_be_left_out(images, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [*_rows(images), {"image": str(images / "0.png"), "question": "?"}])
    with pytest.raises(RecordError, match="5 of 11 images cannot be read; 1 problem beside:\n.*field 'answers'"):
        load_records(tmp_path / "a.jsonl", left_out=LeftOut())


def test_a2_what_is_left_out_is_said_and_written_down(records, tmp_path, capsys):
    skipping = Skipping(True)
    load_records(records, left_out=skipping.of("examples"))
    skipping.report()
    message = capsys.readouterr().err
    assert message.startswith("warning: 5 of 11 images cannot be read; 5 of 11 examples are left out:\n")
    _assert_all_named(message, {NAMES[position]: f"  {records}:{position + 1}: " for position in LEFT_OUT})
    skipping.write(tmp_path / "out.jsonl")
    found = _left_out(tmp_path / "out.jsonl.left_out.json", "examples")
    assert (found["images"], found["unreadable_images"], found["rows"]) == (11, 5, 11)
    assert [entry["id"] for entry in found["left_out"]] == [f"q{position}" for position in LEFT_OUT]
    assert skipping.positions() == {"examples": LEFT_OUT}
    Skipping(True).write(tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl.left_out.json").exists()  # it would be about another run


def test_a2_of_many_rows_left_out_the_first_are_named(tmp_path, capsys):
    _picture(0).save(tmp_path / "good.png")
    names = ["good.png", *(f"{number}.png" for number in range(1100))]
    write_jsonl(tmp_path / "a.jsonl", [{"image": name, "question": "?", "answers": ["a"]} for name in names])
    skipping = Skipping(True)
    assert len(load_records(tmp_path / "a.jsonl", left_out=skipping.of("records"))) == 1
    skipping.report()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: 1,100 of 1,101 images cannot be read; 1,100 of 1,101 records are left out:"
    assert len(lines) == 7
    assert lines[-1] == "  and 1,095 more"


# -- commands ---------------------------------------------------------------------------------------------------------


class Means(Encoder):
    """Encodes an image as its mean colour."""

    can_text = can_images = True

    def __init__(self):
        super().__init__("means", "f" * 64, 3)

    def encode_images(self, images):
        vectors = np.array([np.asarray(image).mean(axis=(0, 1)) + 1 for image in images])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def encoder(monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "load_encoder", lambda name, device: Means())


def test_a2_embeddings(records, tmp_path, encoder, capsys):
    command = [
        "--dataset_name",
        records,
        "--image_encoder",
        "means",
        "--cache_dir",
        "",
        "--output",
        tmp_path / "t.safetensors",
    ]
    message = _ending(embeddings.main, command)
    assert message.startswith("error: 5 of 11 images cannot be read:\n")
    _assert_all_named(message)
    embeddings.main([*map(str, command), "--skip_unreadable"])
    assert EmbeddingTable.load(tmp_path / "t.safetensors").ids == ["q0", "q2", "q5", "q6", "q8", "q10"]
    found = _left_out(tmp_path / "t.safetensors.left_out.json", "records")
    assert [entry["position"] for entry in found["left_out"]] == LEFT_OUT
    assert "5 of 11 records are left out" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["random", "image_similarity"])
def test_a2_pools(records, tmp_path, encoder, sampler):
    command = [
        "--dataset_name",
        records,
        "--sampler",
        sampler,
        "--image_encoder",
        "means",
        "--cache_dir",
        "",
        "--pool_size",
        3,
    ]
    command += ["--exclude_same_image", "--output", tmp_path / "pools.jsonl"]
    message = _ending(pools.main, command)
    assert message.startswith("error: 5 of 11 images cannot be read:\n")
    _assert_all_named(message)
    pools.main([*map(str, command), "--skip_unreadable"])
    rows = [row for _, row in read_rows(tmp_path / "pools.jsonl")]
    kept = {f"q{position}" for position in range(11) if position not in LEFT_OUT}
    assert {row["query_id"] for row in rows} == kept
    assert kept.issuperset(item for row in rows for item in row["pool"])
    assert len(_left_out(tmp_path / "pools.jsonl.left_out.json", "examples")["left_out"]) == 5


def test_a2_pools_whose_images_nobody_reads_need_none(records, tmp_path):
    command = [
        "--dataset_name",
        records,
        "--sampler",
        "random",
        "--pool_size",
        3,
        "--output",
        tmp_path / "pools.jsonl",
    ]
    pools.main([str(argument) for argument in command])
    assert len((tmp_path / "pools.jsonl").read_text().splitlines()) == 11


def _annotate(images: Path, folder: Path, names: list[str], split: str) -> None:
    rows = [{"image_path": str(images / name), "filter_factor_texts": ["too dark"]} for name in names]
    write_jsonl(folder / f"{split}.jsonl", rows)


def test_a2_factors(images, tmp_path, monkeypatch):
    monkeypatch.setattr(factors, "load_text_encoder", lambda _: lambda texts: np.ones((len(texts), 1), np.float32))
    _annotate(images, tmp_path / "in", NAMES[:5], "train")
    _annotate(images, tmp_path / "in", NAMES[5:], "validation")
    write_jsonl(tmp_path / "in" / "test.jsonl", [{"image_path": str(images / "0.png"), "texts": []}])
    message = _ending(factors.main, ["--dataset_name", tmp_path / "in", "--output_dir", tmp_path / "out"])
    _assert_all_named(message)
    assert "test.jsonl:1: field 'filter_factor_texts': Field required (found missing)" in message
    heading = "5 of 11 images cannot be read; 7 problems"
    assert message.endswith(f"\nerror: {heading} in {tmp_path / 'in'}")

    (tmp_path / "in" / "test.jsonl").unlink()
    factors.main(["--dataset_name", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--skip_unreadable"])
    known = load_factor_set(tmp_path / "out").ids
    kept = {
        split: [Path(row.image_path).name for row in load_labelled(tmp_path / "out", split, known)]
        for split in ("train", "validation")
    }
    assert kept == {"train": ["0.png", "1.png"], "validation": ["2.png", "3.png", "4.png", "5.png"]}
    found = json.loads((tmp_path / "out" / "left_out.json").read_text())
    assert {name: len(one["left_out"]) for name, one in found.items()} == {
        "train annotations": 3,
        "validation annotations": 2,
    }


# -- sources ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(images, tmp_path) -> Path:
    """A folder of pictures, of which three are broken; in the order of their names, 6, 7 and 8."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in (*GOOD, "cut.jpg", "empty.png", "text.png"):
        (folder / name).write_bytes((images / name).read_bytes())
    return folder


def test_a2_reports_on_images_as_they_are(source, tmp_path):
    command = ["--source", source, "--output_dir", tmp_path / "out", "--no_damage", "--workers", 1]
    message = _ending(quality_reports.main, command)
    assert message.startswith("error: 3 of 9 images cannot be read:\n")
    assert all(name in message for name in ("cut.jpg", "empty.png", "text.png"))
    (source / "00.png").write_bytes(b"")  # in the second place
    quality_reports.main([*map(str, command), "--skip_unreadable"])
    assert load_pool(str(tmp_path / "out" / "pool")).ids == [0, 2, 3, 4, 5, 6]
    assert len(measure_pool(load_pool(str(tmp_path / "out" / "pool")))) == 6
    found = _left_out(tmp_path / "out" / "left_out.json", "items")
    assert [entry["position"] for entry in found["left_out"]] == [1, 7, 8, 9]


def test_a2_settings_of_damaged_pools_say_what_is_left_out(source):
    settings = quality_reports.Settings(str(source), 4, 0, (), 1, (1, 1), (0.6, 0.2, 0.2))
    with pytest.raises(RecordError, match="3 of 9 images cannot be read"):
        quality_reports.without_unreadable(settings, Skipping(False))
    found = quality_reports.without_unreadable(settings, Skipping(True))
    assert found.left_out == (6, 7, 8)
    splits = load_splits(str(source), settings.shares, 0, set(found.left_out))
    assert {Path(item.image).name for items in splits.values() for item in items} == set(GOOD)


def test_a2_a_row_of_a_data_set_is_named(tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    _picture(0).save(tmp_path / "good.png")
    good = {"bytes": (tmp_path / "good.png").read_bytes(), "path": None}
    rows = [{"image": image} for image in (good, {"bytes": b"no picture", "path": None}, good, {**good, "bytes": b""})]
    Dataset.from_list(rows, features=Features({"image": ImageFeature()})).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(RecordError) as caught:
        load_splits(str(tmp_path / "set"), (0.6, 0.2, 0.2), seed=0)
    place = f"--source {tmp_path}/set, row"
    assert str(caught.value) == (
        "2 of 4 images cannot be read:\n"
        f"{place} 2: field 'image': an image given as dict: not an image, or of an unknown format\n"
        f"{place} 4: field 'image': an image given as dict: empty, 0 bytes"
    )


@pytest.mark.parametrize("kind", easy_factors.KINDS)
def test_a2_easy_factors(images, tmp_path, monkeypatch, kind):
    items = [
        SourceItem(str(images / name), question, (answer,), "easy")
        for name in NAMES
        for question, answer in (("what shape is in the image?", "circle"), ("what color is the circle?", "red"))
    ]
    monkeypatch.setattr(easy_factors, "load_splits", lambda *_: {"train": items, "validation": [], "test": []})
    command = ["--kind", kind, "--output_dir", tmp_path / "out", "--images", 1, "--workers", 1]
    message = _ending(easy_factors.main, command)
    assert message.startswith("error: 5 of 11 images cannot be read:\n")
    _assert_all_named(message, dict.fromkeys(BROKEN, "easy: field 'image': "))
    if kind == "damages":
        return  # noise of 16 pixels cannot be damaged as planned
    easy_factors.main([*map(str, command), "--skip_unreadable"])
    [row] = [row for _, row in read_rows(tmp_path / "out" / "train.jsonl")]
    assert Path(row["image_path"]).name in GOOD
    assert len(_left_out(tmp_path / "out" / "left_out.json", "train items")["left_out"]) == 10


def test_a2_measured_pools_name_every_picture(images):
    items = [Item(id=number, image=name) for number, name in enumerate(NAMES)]
    with pytest.raises(RecordError) as caught:
        measure_pool(Pool(images, items))
    assert str(caught.value).startswith("5 of 11 images cannot be read:\n")
    places = {NAMES[position]: f"{images}: item {position}: field 'image': " for position in LEFT_OUT}
    _assert_all_named(str(caught.value), places)


@pytest.mark.parametrize("name", ["filtering_quality", "combined"])
def test_a2_pools_that_agents_filter_are_checked_before_anything_starts(images, tmp_path, monkeypatch, name):
    for number, names in enumerate((GOOD, NAMES, ["0.png", "empty.png", "cut.jpg"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        items = [Item(id=place, image=str(images / image)) for place, image in enumerate(names)]
        Pool(folder, items).save_items()
    measure_pool(Pool(tmp_path / "0"))
    rows = [
        {"id": number, "pool": str(tmp_path / str(number % 3)), "ground_truth_filtered_data": [0]}
        | {"ground_truth_agents": []}
        for number in range(6)
    ]
    rows.append({**rows[0], "pool": None})
    with pytest.raises(RecordError) as caught:
        check_columns(build_rewards([name]), rows, "rows.jsonl")
    assert str(caught.value).startswith("5 of 11 images cannot be read:\n")
    assert len(caught.value.problems) == 7
    assert f"{tmp_path}/2: item 1: field 'image': {images}/empty.png: empty, 0 bytes" in caught.value.problems
    check_columns(build_rewards([{"name": name, "on_error": "skip"}]), rows, "rows.jsonl")  # they are counted

    monkeypatch.setattr("data.io.images.open_image", lambda _: pytest.fail("an image of a measured pool was decoded"))
    check_columns(build_rewards([name]), [rows[0], rows[3]], "rows.jsonl")
