"""Commands that write data sets: splits without leaks that can be read, folders that are whole or say they are not."""

import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data import agent_selection, annotators, factors, quality_reports, vqa
from data.io.image_sources import load_splits
from data.io.output_folder import describe_sizes, writing
from data.io.records import RecordError, read_rows, write_json, write_jsonl
from data.io.splits import SPLITS, divide, linked_groups, split_sizes
from data.io.unreadable import Skipping
from data.reports.pool import Item, Pool, load_pool
from data.tasks import load_rows

SHARES = (0.8, 0.1, 0.1)


def _report(number, **fields) -> dict:
    return {
        "report": f"report {number}",
        "ground_truth_agents": ["blur_filter"],
        "ground_truth_filtered_data": [1],
        **fields,
    }


def _sizes(folder: Path) -> dict[str, int]:
    found = {}
    for split in SPLITS:
        try:
            found[split] = len(load_rows(folder, split))
        except RecordError:
            found[split] = 0
    return found


# -- F05: splits that can be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["hf", "json", "jsonl"])
@pytest.mark.parametrize(
    ("records", "sizes"),
    [
        (1, {"train": 1, "validation": 0, "test": 0}),
        (2, {"train": 1, "validation": 0, "test": 1}),
        (3, {"train": 1, "validation": 1, "test": 1}),
        (4, {"train": 2, "validation": 1, "test": 1}),
        (20, {"train": 16, "validation": 2, "test": 2}),
    ],
)
def test_f05_few_records_are_divided_into_splits_that_can_be_read(records, sizes, file_format, tmp_path, capsys):
    write_json(tmp_path / "in.json", [_report(number) for number in range(records)])
    out = tmp_path / "out"
    agent_selection.main(
        ["--dataset_name", str(tmp_path / "in.json"), "--output_dir", str(out), "--format", file_format]
    )
    assert _sizes(out) == sizes
    assert json.loads((out / "metadata.json").read_text())["sizes"] == sizes
    assert describe_sizes(sizes) in capsys.readouterr().out
    for split, size in sizes.items():
        if not size:
            with pytest.raises(RecordError, match=f"no split '{split}'|found none of {split}.jsonl"):
                load_rows(out, split)


def test_f05_a_split_that_was_not_asked_for_is_left_out(tmp_path):
    write_json(tmp_path / "in.json", [_report(number) for number in range(6)])
    shares = ["--train_split", ".5", "--val_split", "0", "--test_split", ".5"]
    agent_selection.main(["--dataset_name", str(tmp_path / "in.json"), "--output_dir", str(tmp_path / "out"), *shares])
    assert _sizes(tmp_path / "out") == {"train": 3, "validation": 0, "test": 3}


@pytest.mark.parametrize(("earlier", "later"), [("jsonl", "hf"), ("json", "jsonl"), ("hf", "json")])
def test_f05_another_format_replaces_the_earlier_one(earlier, later, tmp_path):
    write_json(tmp_path / "old.json", [_report(f"old {number}") for number in range(30)])
    write_json(tmp_path / "new.json", [_report(f"new {number}") for number in range(2)])
    for name, file_format in (("old", earlier), ("new", later)):
        agent_selection.main(
            ["--dataset_name", f"{tmp_path}/{name}.json", "--output_dir", f"{tmp_path}/out", "--format", file_format]
        )
    assert _sizes(tmp_path / "out") == {"train": 1, "validation": 0, "test": 1}
    assert "new" in agent_selection.load_records(tmp_path / "out", "train")[0].report


def test_f05_four_reports_leave_no_split_of_pools_empty(tmp_path):
    command = ["--source", "easy_vqa", "--output_dir", str(tmp_path), "--reports", "4", "--pool_size", "4"]
    quality_reports.main([*command, "--workers", "1", "--images", "0", "--agent_list", "blur_filter"])
    assert _sizes(tmp_path) == {"train": 2, "validation": 1, "test": 1}


def test_f05_demonstrations_are_made_of_the_splits_that_are_there(tmp_path):
    write_json(tmp_path / "in.json", [_report(number) for number in range(2)])
    agent_selection.main(["--dataset_name", str(tmp_path / "in.json"), "--output_dir", str(tmp_path / "data")])
    annotators.main(["--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")])
    assert _sizes(tmp_path / "out") == {"train": 1, "validation": 0, "test": 0}


@given(total=st.integers(3, 500), cuts=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)))
def test_f05_no_split_with_a_share_is_empty(total, cuts):
    shares = (cuts[0], (1 - cuts[0]) * cuts[1], (1 - cuts[0]) * (1 - cuts[1]))
    assert min(split_sizes(total, shares)) >= 1
    assert min(map(len, divide(range(total), shares, seed=0).values())) >= 1


# -- N1: nothing on two sides ----------------------------------------------------------------------------------------


def _sides(folder: Path, key) -> Counter:
    """On how many sides each key stands."""
    sides = Counter()
    for split in SPLITS:
        sides.update({key(record) for record in agent_selection.load_records(folder, split, check_files=False)})
    return sides


def test_n1_no_report_of_several_filtered_data_sets_stands_on_two_sides(tmp_path):
    filtered = [{"data_ids": [number]} for number in range(3)]
    rows = [
        {"report": f"report {number}", "agent_list": ["a"], "filtered_datasets": filtered} for number in range(100)
    ]
    write_json(tmp_path / "in.json", rows)
    agent_selection.main(["--dataset_name", str(tmp_path / "in.json"), "--output_dir", str(tmp_path / "out")])
    assert set(_sides(tmp_path / "out", lambda record: record.report).values()) == {1}
    assert _sizes(tmp_path / "out") == {"train": 240, "validation": 30, "test": 30}


def test_n1_reports_that_differ_in_white_space_are_one(tmp_path):
    rows = [_report(f"{number}{end}") for number in range(40) for end in ("", "\n", "  ")]
    rows[1]["report"] = rows[1]["report"].replace(" ", "\t\n")
    write_json(tmp_path / "in.json", rows)
    agent_selection.main(
        ["--dataset_name", str(tmp_path / "in.json"), "--output_dir", str(tmp_path / "out"), "--format", "jsonl"]
    )
    assert set(_sides(tmp_path / "out", lambda record: " ".join(record.report.split())).values()) == {1}


def test_n01_reports_that_differ_in_their_writing_are_one(tmp_path):
    writings = ("café {}", "cafe\u0301 {}", "CAFÉ\n{} ", "\tCafé  {}")
    rows = [_report("") | {"report": writing.format(number)} for number in range(30) for writing in writings]
    write_json(tmp_path / "in.json", rows)
    agent_selection.main(
        ["--dataset_name", str(tmp_path / "in.json"), "--output_dir", str(tmp_path / "out"), "--format", "jsonl"]
    )
    sides = _sides(tmp_path / "out", lambda record: record.report.split()[-1])
    assert sides == dict.fromkeys(map(str, range(30)), 1)


def test_n1_no_pool_stands_on_two_sides_also_where_reports_link_pools(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    for number in range(20):
        (tmp_path / f"pool{number}").mkdir()
        Pool(tmp_path / f"pool{number}", [Item(id=1, image=str(tmp_path / "0.png"))]).save_items()
    rows = [_report(number, pool=f"pool{number % 20}") for number in range(60)]
    rows += [_report("shared", pool="pool3"), _report("shared", pool="./pool4")]  # one report about two pools
    write_jsonl(tmp_path / "in.jsonl", rows)
    agent_selection.main(["--dataset_name", str(tmp_path / "in.jsonl"), "--output_dir", str(tmp_path / "out")])
    sides = _sides(tmp_path / "out", lambda record: os.path.realpath(record.pool))
    assert set(sides.values()) == {1}
    assert len(sides) == 20
    for split in SPLITS:
        pools = {Path(r.pool).name for r in agent_selection.load_records(tmp_path / "out", split, check_files=False)}
        assert ("pool3" in pools) == ("pool4" in pools)


def test_n1_copies_of_a_picture_stay_in_one_split_of_a_source(tmp_path):
    for number in range(30):
        picture = Image.new("RGB", (16, 16), (8 * number, 0, 0))
        for copy in "ab":
            picture.save(tmp_path / f"{copy}{number}.png")
    splits = load_splits(str(tmp_path), SHARES, seed=1)
    names = {split: {Path(item.image).stem[1:] for item in items} for split, items in splits.items()}
    assert sum(map(len, names.values())) == 30
    assert {split: len(items) for split, items in splits.items()} == {"train": 48, "validation": 6, "test": 6}


def _annotated(folder: Path, names: list[str], split: str | None = None) -> None:
    rows = [{"image_path": f"../img/{name}", "filter_factor_texts": ["blurry"]} for name in names]
    write_jsonl(folder / f"{split or 'all'}.jsonl", rows)


@pytest.fixture
def twins(tmp_path) -> Path:
    """Folder in which `a0.png` and `b0.png` are one picture, `a1.png` and `b1.png` another, and so on to 9."""
    (tmp_path / "img").mkdir()
    for number in range(10):
        for copy in "ab":
            Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(tmp_path / "img" / f"{copy}{number}.png")
    return tmp_path


def test_n1_copies_of_a_picture_stay_in_one_split_of_factors(twins):
    _annotated(twins / "in", [f"{copy}{number}.png" for number in range(10) for copy in "ab"])
    splits = factors._load_splits(twins / "in" / "all.jsonl", False, (0.8, 0.1, 0.1), 42, Skipping(False))
    names = [{Path(record.image_path).stem[1:] for record in records} for records in splits.values()]
    assert sum(map(len, names)) == len(set.union(*names)) == 10
    assert all(names)


def test_n1_a_copy_in_another_split_of_a_folder_is_an_error(twins):
    _annotated(twins / "in", ["a0.png", "a1.png"], "train")
    _annotated(twins / "in", ["a2.png"], "validation")
    _annotated(twins / "in", ["b1.png"], "test")
    with pytest.raises(SystemExit) as error:
        factors.main(["--dataset_name", str(twins / "in"), "--validate_only"])
    assert f"{twins}/img/b1.png of the test split is also in the train split as {twins}/img/a1.png" in str(error.value)


EDGES = st.lists(st.lists(st.integers(0, 25), max_size=3), min_size=1, max_size=40)


@given(EDGES, st.integers(0, 3))
def test_n1_no_key_stands_in_two_splits_and_no_record_is_lost(edges, seed):
    records = list(enumerate(edges))
    splits = divide(records, SHARES, seed, keys=lambda record: record[1])
    assert sorted(record for part in splits.values() for record in part) == records
    sides = Counter(key for part in splits.values() for key in {key for _, keys in part for key in keys})
    assert set(sides.values()) <= {1}
    groups = linked_groups(records, lambda record: record[1])
    assert sum(map(bool, splits.values())) == min(3, len(groups))


# -- T16: whole, or seen to be unfinished ----------------------------------------------------------------------------


def _reports(folder: Path, seed: int) -> list[str]:
    command = ["--source", "easy_vqa", "--output_dir", str(folder), "--reports", "6", "--pool_size", "4"]
    return [*command, "--workers", "1", "--seed", str(seed), "--images", "0", "--agent_list", "blur_filter"]


def _killed(function, *arguments) -> None:
    """Runs a function in a process that dies as by kill -9 when `write_split` is called for the second time."""

    def run():
        write_split, calls = quality_reports.write_split, []

        def dying(*more):
            calls.append(more)
            if len(calls) == 2:
                os._exit(9)
            write_split(*more)

        quality_reports.write_split = dying
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 9


def test_t16_reports_of_another_seed_that_were_killed_are_refused_until_they_are_whole(tmp_path):
    quality_reports.main(_reports(tmp_path, seed=0))
    _killed(quality_reports.main, _reports(tmp_path, seed=1))
    for split in SPLITS:
        with pytest.raises(RecordError, match=f"{tmp_path}: unfinished: still being written, or interrupted; run"):
            load_rows(tmp_path, split)
    load_pool.cache_clear()
    with pytest.raises(RecordError, match="unfinished"):
        load_pool(str(tmp_path / "pools" / "train-00000"))
    quality_reports.main(_reports(tmp_path, seed=1))
    quality_reports.main(_reports(tmp_path / "undisturbed", seed=1))
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (tmp_path / "undisturbed" / f"{split}.jsonl").read_bytes()


def test_t16_a_folder_is_refused_while_it_is_written_and_after_a_failure(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [_report(1)])

    def fail():
        with writing(tmp_path):
            assert len(list(read_rows(tmp_path))) == 1  # the writer may read what it wrote
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for source in (tmp_path, tmp_path / "train.jsonl"):
        with pytest.raises(RecordError, match="unfinished"):
            read_rows(source)
    with writing(tmp_path):
        pass
    assert len(list(read_rows(tmp_path))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_t16_two_starts_in_one_folder_end_with_who_holds_it(tmp_path):
    with writing(tmp_path), pytest.raises(SystemExit) as error:
        vqa.main(["--source", "easy_vqa", "--output_dir", str(tmp_path), "--limit", "3"])
    assert str(error.value).startswith(f"error: {tmp_path}: process {os.getpid()} on ")
    assert "wait for it, end it, or choose another output" in str(error.value)


def test_t16_a_split_that_was_written_wrong_is_never_called_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(agent_selection, "as_row", lambda record, base: {"report": record.report})
    write_json(tmp_path / "in.json", [_report(number) for number in range(4)])
    with pytest.raises(SystemExit, match="was written, and cannot be read back: .*ground_truth_agents"):
        agent_selection.main(
            ["--dataset_name", str(tmp_path / "in.json"), "--output_dir", str(tmp_path / "out"), "--format", "jsonl"]
        )
    assert "written to" not in capsys.readouterr().out
    with pytest.raises(RecordError, match="unfinished"):
        load_rows(tmp_path / "out", "train")


# -- places of outputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        lambda place: vqa.main(["--source", "easy_vqa", "--output_dir", place, "--limit", "3"]),
        lambda place: agent_selection.main(
            ["--dataset_name", str(Path(place).parent / "in.json"), "--output_dir", place]
        ),
        lambda place: annotators.main(["--dataset_name", str(Path(place).parent / "in.json"), "--output_dir", place]),
    ],
)
def test_f05_a_file_in_place_of_the_output_folder_is_a_clear_error(command, tmp_path):
    (tmp_path / "out").write_text("mine")
    write_json(tmp_path / "in.json", [_report(1)])
    with pytest.raises(SystemExit, match="expected a folder to write to, found a file"):
        command(str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "train.jsonl"])
def test_f05_an_input_is_never_overwritten(name, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [_report(number) for number in range(6)])
    before = (tmp_path / "train.jsonl").read_bytes()
    for command in (annotators.main, agent_selection.main):
        with pytest.raises(SystemExit, match="would overwrite the input"):
            command(["--dataset_name", str(tmp_path / name), "--output_dir", str(tmp_path)])
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
