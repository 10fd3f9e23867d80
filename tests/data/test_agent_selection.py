"""Records of agent selection: the raw form, files that are missing, splits, formats and the command."""

import json

import pytest
from PIL import Image

from data.agent_selection import AgentSelectionRecord, as_row, load_records, main, parse_records
from data.io.records import Location, RecordError, read_rows

RAW = {
    "report": "Half of it is blurry.",
    "agent_list": ["blur_filter", "exposure_filter"],
    "filtered_datasets": [
        {"data_ids": [3, "b", 1], "metadata": {"version": 1}},
        {"data_ids": []},
    ],
}


def _record(**fields) -> dict:
    return {"report": "Blurry.", "ground_truth_agents": ["blur_filter"], "ground_truth_filtered_data": [1], **fields}


def _problems(path) -> list[str]:
    with pytest.raises(RecordError) as caught:
        load_records(path)
    return caught.value.problems


def test_a_raw_report_gives_one_record_for_each_filtered_data_set(write_lines):
    first, second = load_records(write_lines("raw.jsonl", RAW))
    assert first.report == second.report == "Half of it is blurry."
    assert first.ground_truth_agents == second.ground_truth_agents == ["blur_filter", "exposure_filter"]
    assert first.ground_truth_filtered_data == [3, "b", 1]
    assert second.ground_truth_filtered_data == []
    assert (first.metadata, second.metadata) == ({"version": 1}, None)


def test_both_forms_may_stand_in_one_file(write_lines):
    records = load_records(write_lines("mixed.jsonl", RAW, _record(id="own")))
    assert [record.id for record in records] == [None, None, "own"]


def test_ids_stay_integers_or_strings(write_lines):
    (record,) = load_records(write_lines("a.jsonl", _record(ground_truth_filtered_data=[1, "1", "x"], id=7)))
    assert record.ground_truth_filtered_data == [1, "1", "x"]
    assert record.id == 7


@pytest.mark.parametrize("bad_id", [1.5, True, None, [1]])
def test_other_ids_are_refused_with_their_place(write_lines, bad_id):
    path = write_lines("a.jsonl", _record(ground_truth_filtered_data=[1, bad_id]))
    problems = _problems(path)
    assert problems
    assert all(f"{path}:1: field 'ground_truth_filtered_data.1" in problem for problem in problems)
    assert all(problem.endswith(f"(found {bad_id!r})") for problem in problems)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (_record(report=""), "field 'report': String should have at least 1 character (found '')"),
        (_record(report=5), "field 'report': Input should be a valid string (found 5)"),
        (_record(ground_truth_agents="blur_filter"), "field 'ground_truth_agents': Input should be a valid list"),
        (
            _record(ground_truth_agents=[" "]),
            "field 'ground_truth_agents': Value error, agent names must not be empty",
        ),
        (
            _record(ground_truth_prompts={"blur_filter": 3}),
            "field 'ground_truth_prompts.blur_filter': Input should be",
        ),
        (_record(images=["a"] * 5), "field 'images': List should have at most 4 items after validation, not 5"),
        (_record(images=7), "field 'images': expected a path, bytes or an image (found 7)"),
        (_record(reports="x"), "field 'reports': Extra inputs are not permitted (found 'x')"),
        ({"report": "x"}, "field 'ground_truth_agents': Field required (found missing)"),
        ({**RAW, "report": None}, "field 'report': Input should be a valid string (found None)"),
        ({**RAW, "filtered_datasets": {}}, "field 'filtered_datasets': Input should be a valid list (found {})"),
        ({**RAW, "filtered_datasets": [{}]}, "field 'filtered_datasets.0.data_ids': Field required (found missing)"),
        ({**RAW, "agent_list": [""]}, "field 'ground_truth_agents': Value error, agent names must not be empty"),
        ({**RAW, "agent_list": None}, "field 'agent_list': missing, and no --agent_list was given"),
        ({"report": "x", "agent_list": ["a"]}, "field 'filtered_datasets': Field required (found missing)"),
    ],
)
def test_a_malformed_row_names_line_and_field(write_lines, row, problem):
    path = write_lines("rows.jsonl", _record(), row)
    assert _problems(path)[0].startswith(f"{path}:2: {problem}")


def test_agents_of_the_command_line_are_used_where_a_report_names_none(write_lines):
    path = write_lines("raw.jsonl", {**RAW, "agent_list": None}, RAW)
    records = parse_records(read_rows(path), path.parent, agent_list=["shape"])
    agents = [record.ground_truth_agents for record in records]
    assert agents == [["shape"], ["shape"], RAW["agent_list"], RAW["agent_list"]]


def test_differing_agent_lists_cause_a_warning(write_lines):
    path = write_lines("raw.jsonl", RAW, {**RAW, "agent_list": ["blur_filter"]})
    with pytest.warns(UserWarning, match="2 different agent lists, among them: blur_filter; blur_filter, exposure"):
        assert len(load_records(path)) == 4


def test_equal_agent_lists_cause_no_warning(write_lines, recwarn):
    load_records(write_lines("raw.jsonl", RAW, RAW))
    assert not [warning for warning in recwarn if "agent lists" in str(warning.message)]


def test_paths_start_at_the_file_that_they_stand_in(write_lines, tmp_path, photo):
    photo.save(tmp_path / "photo.png")
    path = write_lines("a.jsonl", _record(images=["photo.png", str(tmp_path / "photo.png")]))
    (record,) = load_records(path)
    assert record.images == [str(tmp_path / "photo.png")] * 2


def test_a_missing_pool_is_named_with_line_and_field(write_lines):
    path = write_lines("a.jsonl", _record(pool="pools/1"))
    assert _problems(path) == [f"{path}:1: field 'pool': no items.jsonl in {path.parent / 'pools' / '1'}"]


def test_a_malformed_pool_is_named_before_anything_runs(write_lines, tmp_path):
    (tmp_path / "pool").mkdir()
    items = write_lines("pool/items.jsonl", {"id": 1, "image": "a.png"}, {"id": 2.5, "image": "b.png"})
    path = write_lines("a.jsonl", _record(), _record(pool="pool"))
    problems = _problems(path)
    assert problems
    assert all(problem.startswith(f"{path}:2: field 'pool': {items}:2: field 'id.") for problem in problems)


def test_a_pool_without_its_pictures_is_named_before_anything_runs(write_lines, tmp_path):
    (tmp_path / "pool").mkdir()
    write_lines("pool/items.jsonl", {"id": "x", "image": "images/a.png"})
    path = write_lines("a.jsonl", _record(pool="pool"))
    missing = tmp_path / "pool" / "images" / "a.png"
    assert _problems(path) == [f"{path}:1: field 'pool': item 'x': no such image file: {missing}"]


def test_files_are_not_looked_for_when_that_is_not_wanted(write_lines):
    path = write_lines("a.jsonl", _record(pool="nowhere", images=["nothing.png"]))
    (record,) = load_records(path, check_files=False)
    assert record.pool == str(path.parent / "nowhere")


def test_problems_of_texts_images_and_pools_are_listed_together(write_lines):
    path = write_lines("a.jsonl", _record(report=""), _record(images=["no.png"]), b"{", _record(pool="nowhere"))
    assert sorted({problem.split(": ")[0] for problem in _problems(path)}) == [
        f"{path}:{line}" for line in range(1, 5)
    ]


def test_an_image_given_as_an_object_is_written_beside_the_rows(tmp_path, photo):
    record = AgentSelectionRecord(**_record(images=[photo]))
    row = as_row(record, tmp_path)
    (name,) = row["images"]
    assert name.startswith("images/")
    assert Image.open(tmp_path / name).tobytes() == photo.tobytes()
    assert as_row(record, tmp_path) == row


def test_absent_fields_are_left_out_of_a_row_and_free_metadata_stays(tmp_path):
    record = AgentSelectionRecord(**_record(metadata={"a": None}))
    assert as_row(record, tmp_path) == _record(metadata={"a": None})


VARIED = [
    _record(
        id=0, report="one", metadata={"depth": {"of": ["things", 1, None]}}, ground_truth_filtered_data=[1, "two"]
    ),
    _record(id="one", report="two", ground_truth_prompts={"blur_filter": "keep blur at most 0.5"}),
    _record(report="three", ground_truth_filtered_data=[], metadata={"depth": "a text this time"}),
    _record(id=3, report="four", ground_truth_agents=[]),
]


@pytest.mark.parametrize("file_format", ["hf", "json", "jsonl"])
def test_what_was_written_in_any_format_is_read_again(write_lines, tmp_path, photo, file_format):
    photo.save(tmp_path / "photo.png")
    path = write_lines(
        "in.jsonl", *(_record(id=100 + n, report=f"no. {n}", images=["photo.png"]) for n in range(6)), *VARIED
    )
    expected = load_records(path)
    folder = tmp_path / "deep" / "out"
    main(["--dataset_name", str(path), "--output_dir", str(folder), "--format", file_format, "--seed", "1"])
    read = {split: load_records(folder, split) for split in ("train", "validation", "test")}
    assert {split: len(records) for split, records in read.items()} == {"train": 8, "validation": 1, "test": 1}

    def in_order(records):
        return sorted(record.model_dump_json() for record in records)

    assert in_order(record for records in read.values() for record in records) == in_order(expected)


def test_the_hf_format_can_be_read_by_the_datasets_library_alone(write_lines, tmp_path):
    from datasets import load_from_disk

    main(
        [
            "--dataset_name",
            str(write_lines("in.jsonl", *VARIED, *VARIED)),
            "--output_dir",
            str(tmp_path / "out"),
            "--val_split",
            "0.1",
        ]
    )
    assert {name: len(part) for name, part in load_from_disk(tmp_path / "out").items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }


def test_metadata_of_the_splits_names_sizes_and_agents(write_lines, tmp_path):
    path = write_lines("in.jsonl", RAW, {**RAW, "report": "Other."}, _record(ground_truth_agents=["zoom", "alpha"]))
    shares = ["--train_split", "0.6", "--val_split", "0.4", "--test_split", "0"]
    main(["--dataset_name", str(path), "--output_dir", str(tmp_path / "out"), "--format", "jsonl", *shares])
    assert json.loads((tmp_path / "out" / "metadata.json").read_text()) == {
        "format": "jsonl",
        "sizes": {"train": 4, "validation": 1, "test": 0},
        "agents": ["alpha", "blur_filter", "exposure_filter", "zoom"],
    }


def test_the_seed_decides_which_record_stands_in_which_split(write_lines, tmp_path):
    path = write_lines("in.jsonl", *(_record(id=number, report=f"no. {number}") for number in range(40)))

    def ids(name, seed):
        main(
            [
                "--dataset_name",
                str(path),
                "--output_dir",
                str(tmp_path / name),
                "--format",
                "jsonl",
                "--seed",
                str(seed),
            ]
        )
        return [record.id for record in load_records(tmp_path / name, "test")]

    assert ids("a", 1) == ids("b", 1)
    assert ids("a", 1) != ids("c", 2)


@pytest.mark.parametrize("shares", [("0.5", "0.2", "0.2"), ("0.8", "0.3", "0.1"), ("1", "1", "1")])
def test_shares_must_add_up_to_one(write_lines, tmp_path, capsys, shares):
    options = [
        part for pair in zip(("--train_split", "--val_split", "--test_split"), shares, strict=True) for part in pair
    ]
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(write_lines("in.jsonl", RAW)), "--output_dir", str(tmp_path / "out"), *options])
    assert caught.value.code == 2
    assert "--train_split, --val_split and --test_split must add up to 1, found (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_is_needed_for_writing(write_lines, capsys):
    with pytest.raises(SystemExit):
        main(["--dataset_name", str(write_lines("in.jsonl", RAW))])
    assert "--output_dir is needed unless --validate_only is given" in capsys.readouterr().err


def test_validate_only_writes_nothing_for_good_records(write_lines, tmp_path, capsys):
    path = write_lines("in.jsonl", RAW)
    main(["--dataset_name", str(path), "--validate_only", "--output_dir", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{path}: 2 valid records\n"
    assert not (tmp_path / "out").exists()


def test_validate_only_lists_every_problem_and_fails(run_command, write_lines):
    path = write_lines("in.jsonl", *[_record(report="")] * 30, RAW)
    finished = run_command("-m", "data.agent_selection", "--dataset_name", path, "--validate_only")
    assert finished.returncode == 1
    lines = finished.stderr.strip().splitlines()
    found = "String should have at least 1 character (found '')"
    assert lines[:-1] == [f"{path}:{line}: field 'report': {found}" for line in range(1, 31)]
    assert lines[-1] == f"error: 30 problems in {path}"


def test_one_problem_is_no_problems(write_lines):
    path = write_lines("in.jsonl", _record(report=""), RAW)
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(path), "--validate_only"])
    assert str(caught.value).endswith(f"\nerror: 1 problem in {path}")


def test_malformed_records_stop_the_command_before_it_writes(write_lines, tmp_path):
    path = write_lines("in.jsonl", RAW, {**RAW, "agent_list": None})
    with pytest.raises(SystemExit, match="in.jsonl:2: field 'agent_list': missing"):
        main(["--dataset_name", str(path), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_command_takes_the_agents_of_raw_reports(write_lines, tmp_path):
    path = write_lines("in.jsonl", {**RAW, "agent_list": None})
    main(["--dataset_name", str(path), "--output_dir", str(tmp_path), "--format", "json", "--train_split", "1",
          "--val_split", "0", "--test_split", "0", "--agent_list", "zoom", "crop"])  # fmt: skip
    assert [record.ground_truth_agents for record in load_records(tmp_path)] == [["zoom", "crop"]] * 2


def test_an_empty_agent_name_on_the_command_line_is_refused(write_lines):
    rows = [(Location("in.jsonl", 1), {**RAW, "agent_list": None})]
    with pytest.raises(
        RecordError, match="in.jsonl:1: field 'ground_truth_agents': Value error, agent names must not"
    ):
        parse_records(rows, write_lines("a").parent, agent_list=[""])
