"""Reports on damaged pools: the right answer is right, splits share nothing, and a killed run goes on."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from command_lines import with_options
from PIL import Image

from data.agent_selection import load_records
from data.io.splits import SPLITS
from data.quality_reports import agent_prompt, format_number, main
from data.reports.aspects import (
    ANSWERS,
    ASPECTS,
    BLUR,
    EXACT_COPIES,
    EXPOSURE,
    NEAR_COPIES,
    RESOLUTION,
    SHAPE,
    TEXT_LENGTH,
)
from data.reports.damage import DAMAGES
from data.reports.pool import load_pool
from data.reports.wording import OPENINGS, TEST, TRAIN, WORDINGS
from filter_agents.executor import Executor
from filter_agents.registry import build_agents

NAMES = ["blur_filter", "exposure_filter", "resolution_filter", "exact_duplicate_filter", "text_length_filter",
         "answer_consistency_filter"]  # fmt: skip


@pytest.fixture(scope="module")
def records(report_data) -> dict:
    return {split: load_records(report_data, split) for split in SPLITS}


@pytest.fixture(scope="module")
def every_record(records) -> list:
    return [record for split in SPLITS for record in records[split]]


def _make(folder: Path, *arguments, source="easy_vqa", reports=5, pool_size=4) -> Path:
    shares = ["--train_split", "0.6", "--val_split", "0.2", "--test_split", "0.2"]
    words = ["--source", source, "--output_dir", folder, "--reports", reports, "--seed", "7"]
    main(with_options([*words, "--pool_size", pool_size, "--workers", "1", *shares], arguments))
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_as_many_records_as_wanted_are_written(records):
    assert {split: len(part) for split, part in records.items()} == {"train": 24, "validation": 4, "test": 4}


def test_the_right_agents_are_those_for_the_damages(every_record):
    for record in every_record:
        agents = {DAMAGES[damage].aspect.agent for damage in record.metadata["damage_of"].values()}
        assert set(record.ground_truth_agents) == agents == set(record.ground_truth_prompts)
        assert len(record.ground_truth_agents) == len(agents) <= 3
    assert {agent for record in every_record for agent in record.ground_truth_agents} == set(NAMES)


def test_the_right_data_are_the_items_without_damage(every_record):
    for record in every_record:
        damaged = {int(position) for position in record.metadata["damage_of"]}
        assert damaged
        assert record.ground_truth_filtered_data == [number for number in range(6) if number not in damaged]


def test_the_right_agents_with_their_prompts_leave_exactly_the_right_data(every_record):
    executor = Executor(build_agents())
    for record in every_record:
        outcome = executor.run(record.pool, record.ground_truth_prompts)
        assert outcome.kept == record.ground_truth_filtered_data
        assert (outcome.unread_prompts, outcome.unknown_agents) == (0, 0)


def test_every_right_agent_is_needed_and_no_other_removes_anything(every_record):
    executor = Executor(build_agents())
    for record in every_record:
        everything = load_pool(record.pool).ids
        for name in NAMES:
            drops_nothing = executor.run(record.pool, {name: ""}).kept == everything
            assert drops_nothing == (name not in record.ground_truth_agents)


def test_images_shown_belong_to_the_pool(every_record):
    for record in every_record:
        (image,) = record.images
        assert Path(image).parent == Path(record.pool) / "images"


def _healthy_pictures(records) -> set[str]:
    """Pixels of the items that were not damaged, which are those of the source."""
    pictures = set()
    for record in records:
        pool = load_pool(record.pool)
        healthy = [item for item in pool.items if item.id in record.ground_truth_filtered_data]
        pictures |= {hashlib.sha256(Image.open(pool.image_path(item)).tobytes()).hexdigest() for item in healthy}
    return pictures


def test_splits_share_no_picture(records):
    train, validation, test = (_healthy_pictures(records[split]) for split in SPLITS)
    assert min(len(train), len(validation), len(test)) > 5
    assert not train & test
    assert not train & validation
    assert not validation & test


def _pattern(sentence: str) -> re.Pattern:
    """Matches a sentence with any figures filled in."""
    parts = re.split(r"\{.*?\}", sentence)
    return re.compile("(^|(?<=[.] ))" + r"[\w.% ]+?".join(map(re.escape, parts)) + "($| )")


def _used(records, only_in: str) -> set[str]:
    every = [*OPENINGS, *(pair for wording in WORDINGS.values() for pair in wording.remarkable + wording.healthy)]
    marked = [sentence for where, sentence in every if where == only_in]
    return {sentence for sentence in marked if any(_pattern(sentence).search(record.report) for record in records)}


def test_test_reports_have_sentences_that_training_never_has(records):
    assert len(_used(records["test"], TEST)) >= 3
    assert _used(records["train"] + records["validation"], TEST) == set()


def test_training_reports_have_sentences_that_the_test_never_has(records):
    assert len(_used(records["train"], TRAIN)) >= 8
    assert _used(records["test"], TRAIN) == set()


def test_a_report_has_an_opening_and_a_sentence_for_each_aspect(every_record):
    for record in every_record:
        assert "6 items" in record.report
        assert len(re.findall(r"[.](?= |$)", record.report)) == 1 + len(NAMES)


def test_the_same_command_writes_the_same_files(image_folder, tmp_path):
    first, again = (
        _contents(_make(tmp_path / "a", source=image_folder)),
        _contents(_make(tmp_path / "b", "--workers", "2", source=image_folder)),
    )
    assert first == again
    assert sum(name.endswith("record.json") for name in first) == 5


def test_another_seed_writes_other_reports(image_folder, tmp_path):
    first, other = (
        _make(tmp_path / "a", source=image_folder),
        _make(tmp_path / "b", "--seed", "8", source=image_folder),
    )
    assert (first / "train.jsonl").read_bytes() != (other / "train.jsonl").read_bytes()


def test_a_killed_run_goes_on_where_it_stopped_and_ends_the_same(tmp_path):
    folder = _make(tmp_path)
    before = _contents(folder)
    finished = folder / "pools" / "train-00000" / "record.json"
    os.utime(finished, ns=(1, 1))
    # Killed while the second pool was being written: later ones are not there, nor is any split that needs them.
    half_written = folder / "pools" / "train-00001"
    (half_written / "record.json").unlink()
    (half_written / "items.jsonl").unlink()
    (half_written / "images" / "0002.png").write_bytes(b"half")
    (half_written / "images" / "left_over.png").write_bytes(b"from before")
    for name in ("train-00002", "validation-00000", "test-00000"):
        shutil.rmtree(folder / "pools" / name)
    for split in SPLITS:
        (folder / f"{split}.jsonl").unlink()
    assert _contents(_make(tmp_path)) == before
    assert finished.stat().st_mtime_ns == 1


def test_more_reports_keep_those_that_are_there(image_folder, tmp_path):
    five = load_records(_make(tmp_path, source=image_folder))
    ten = load_records(_make(tmp_path, reports=10, source=image_folder))
    assert len(five) == 3
    assert ten[:3] == five
    assert len(ten) == 6


def test_a_changed_command_makes_its_pools_anew(image_folder, tmp_path):
    _make(tmp_path / "a", "--agent_list", "blur_filter", "exposure_filter", source=image_folder)
    changed = ["--agent_list", "exact_duplicate_filter", "--images", "2"]
    assert _contents(_make(tmp_path / "a", *changed, source=image_folder)) == _contents(
        _make(tmp_path / "b", *changed, source=image_folder)
    )


def test_a_folder_of_images_gives_records_whose_answer_is_right(image_folder, tmp_path):
    agents = [aspect.agent for aspect in ASPECTS]
    _make(tmp_path, "--agent_list", *agents, "--images", "4", source=image_folder, reports=10, pool_size=5)
    executor = Executor(build_agents())
    found = [record for split in SPLITS for record in load_records(tmp_path, split)]
    assert len(found) == 10
    for record in found:
        assert executor.run(record.pool, record.ground_truth_prompts).kept == record.ground_truth_filtered_data
        assert len(record.images) == 4
        assert "question" not in record.report.lower()
        assert not {"text_length_filter", "answer_consistency_filter"} & set(record.ground_truth_agents)


def test_without_damage_a_folder_is_only_reported_on(image_folder, tmp_path, capsys):
    before = _contents(image_folder)
    _make(tmp_path, "--no_damage", source=image_folder, pool_size=20)
    assert _contents(image_folder) == before
    (record,) = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert "20 items" in record["report"]
    assert record["report"] in capsys.readouterr().out
    assert set(record) == {"id", "report", "images", "pool"}
    assert Path(record["images"][0]).parent == image_folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool", "report.jsonl"]
    assert len(load_pool(str(tmp_path / "pool"))) == 20


@pytest.mark.parametrize("seed", ["0", "1", "2", "3"])
def test_without_damage_flaws_that_are_there_are_counted(photo, tmp_path, seed):
    (tmp_path / "poor").mkdir()
    for number in range(8):
        picture = photo.point(lambda value: value // 12) if number in (2, 5) else photo
        picture.save(tmp_path / "poor" / f"{number}.png")
    _make(tmp_path, "--no_damage", "--agent_list", "exposure_filter", "--images", "0", "--seed", seed,
          source=tmp_path / "poor", pool_size=8)  # fmt: skip
    record = json.loads((tmp_path / "report.jsonl").read_text())
    assert record["images"] == []
    assert any(words in record["report"] for words in ("2 of 8 images are", "25% are", "2 images are"))


def test_without_damage_a_broken_image_is_named(image_folder, tmp_path):
    folder = tmp_path / "poor"
    shutil.copytree(image_folder, folder)
    broken = sorted(folder.iterdir())[5]
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(SystemExit, match=f"error: 1 of 48 images cannot be read:\n.*{broken}: cannot be decoded"):
        _make(tmp_path / "out", "--no_damage", source=folder, pool_size=100)


@pytest.mark.parametrize(
    ("aspect", "prompt"),
    [
        (BLUR, "keep blur at most 0.75"),
        (EXPOSURE, "keep brightness at least 0.15, clipping at most 0.7"),
        (RESOLUTION, "keep side at least 39"),
        (SHAPE, "keep aspect at most 2"),
        (EXACT_COPIES, "drop exact copies"),
        (NEAR_COPIES, "drop near copies"),
        (TEXT_LENGTH, "keep question words between 3 and 40"),
        (ANSWERS, "keep agreement at least 0.6"),
    ],
)
def test_prompts_of_the_right_answer(aspect, prompt):
    assert agent_prompt(aspect, side_limit=38.4) == prompt


@pytest.mark.parametrize(
    ("value", "text"), [(0.75, "0.75"), (2.0, "2"), (0.1, "0.1"), (40, "40"), (1.005, "1"), (0, "0")]
)
def test_numbers_are_written_shortly(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "5"], "--images: expected a number from 0 to 4, found 5"),
        (["--damages", "0", "2"], "--damages: expected 1 <= least <= most, found 0 2"),
        (["--damages", "3", "2"], "--damages: expected 1 <= least <= most, found 3 2"),
        (["--pool_size", "3"], "--pool_size: expected at least 4, found 3"),
        (["--reports", "0"], "--reports: expected at least 1, found 0"),
        (["--agent_list", "zoom"], "argument --agent_list: invalid choice: 'zoom'"),
        (["--train_split", "0.5"], "must add up to 1, found (0.5, 0.2, 0.2)"),
        (["--workers", "0"], "--workers: expected at least 1, found 0"),
        (["--no_damage", "--pool_size", "0"], "--pool_size: expected at least 1, found 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        _make(tmp_path / "out", *arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_source_is_named_by_the_worker_that_looks_for_it(tmp_path):
    missing = tmp_path / "nothing"
    with pytest.raises(
        SystemExit, match=f"^error: --source {missing}: not easy_vqa, no folder of images, no data set"
    ):
        _make(tmp_path / "out", source=missing)


def test_a_split_without_images_is_an_error_that_names_it(photo, tmp_path):
    (tmp_path / "few").mkdir()
    photo.save(tmp_path / "few" / "only.png")
    shares = ["--train_split", "0", "--val_split", "0.5", "--test_split", "0.5"]
    with pytest.raises(SystemExit, match="^error: --source .*few has no images left for the validation split"):
        _make(tmp_path / "out", *shares, source=tmp_path / "few")


def test_a_vague_report_says_that_something_is_wrong_and_not_what(image_folder, tmp_path):
    _make(tmp_path / "plain", source=image_folder)
    _make(tmp_path / "vague", "--vague", source=image_folder)
    telling = (
        "blur",
        "dark",
        "lit",
        "exposed",
        "pixel",
        "small",
        "large",
        "strip",
        "sharp",
        "focus",
        "ratio",
        "copied",
    )
    for split in SPLITS:
        plain, vague = (load_records(tmp_path / name, split) for name in ("plain", "vague"))
        for before, after in zip(plain, vague, strict=True):
            assert before.ground_truth_agents == after.ground_truth_agents
            assert before.metadata == after.metadata
            assert any(word in before.report.lower() for word in telling)
            assert not any(word in after.report.lower() for word in telling)
            damaged = len(after.metadata["damage_of"])
            assert len(re.findall(r"[.](?= |$)", after.report)) == 2
            figures = [int(number) for number in re.findall(r"\d+", after.report)]
            assert set(figures) <= {4, damaged, round(100 * damaged / 4)}
