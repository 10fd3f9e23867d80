"""`python -m rewards.validate`: right answers earn every reward in full, and those that do not are listed."""

import json

import pytest
import yaml
from report_agents import AGENT_NAMES

from rewards.validate import main

REWARDS = [
    "agent_selection",
    "filtering_quality",
    {"name": "combined", "agent_weight": 0.25, "filtering_weight": 2},
    "xml_format",
    "strict_xml_format",
]


@pytest.fixture
def write_recipe(tmp_path, report_data):
    """Function: keys to change -> path of a recipe for the reports."""

    def write(**changes) -> str:
        keys = {"dataset_name": str(report_data), "agents": AGENT_NAMES, "reward_funcs": REWARDS, **changes}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
        return str(path)

    return write


@pytest.fixture
def spoil(tmp_path, report_data, read_jsonl):
    """Function: changes by row of the test split -> folder with the records changed so."""

    def write(changes: dict[int, dict]) -> str:
        records = read_jsonl(report_data / "test.jsonl")
        for number, record in enumerate(records):
            record["pool"] = str(report_data / record["pool"])
            record["images"] = [str(report_data / image) for image in record["images"]]
            record.update(changes.get(number, {}))
        folder = tmp_path / "spoiled"
        folder.mkdir(exist_ok=True)
        (folder / "test.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        return str(folder)

    return write


def run(*arguments: str, capsys) -> tuple[int, list[str]]:
    """Exit status and printed lines."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code, capsys.readouterr().out.splitlines()


def test_every_right_answer_of_the_reports_is_maximal(write_recipe, capsys):
    status, lines = run("--config", write_recipe(), "--splits", "train", "validation", "test", capsys=capsys)
    assert lines == [
        "train: 24 right answers, 0 scores below the maximum",
        "validation: 4 right answers, 0 scores below the maximum",
        "test: 4 right answers, 0 scores below the maximum",
    ]
    assert status == 0


def test_the_recipe_names_the_splits(write_recipe, capsys):
    recipe = write_recipe(dataset_train_split="validation")
    status, lines = run("--config", recipe, "--limit", "2", capsys=capsys)
    assert (status, [line.split(":")[0] for line in lines]) == (0, ["validation", "test"])
    assert lines[0].startswith("validation: 2 right answers")


def test_a_spoiled_record_is_listed_with_its_row(write_recipe, spoil, capsys):
    folder = spoil({2: {"ground_truth_filtered_data": ["no such id"]}})
    status, lines = run("--config", write_recipe(), "--dataset_name", folder, "--splits", "test", capsys=capsys)
    assert status == 1
    assert lines[0] == "test: 4 right answers, 2 scores below the maximum"
    assert lines[1].startswith("row 'test-00002': filtering_quality is 0, at most 1: <selection>")
    assert lines[2].startswith("row 'test-00002': combined is 0.25, at most 2.25: <selection>")
    assert len(lines) == 3


def test_agents_that_the_recipe_lacks_are_listed(write_recipe, spoil, capsys):
    folder = spoil({0: {"ground_truth_agents": ["no_such_filter"], "ground_truth_prompts": {}}})
    recipe = write_recipe(reward_funcs=["agent_selection", "strict_xml_format"])
    status, lines = run("--config", recipe, "--dataset_name", folder, "--splits", "test", capsys=capsys)
    assert status == 1
    assert [line[: line.index(":")] for line in lines] == ["test", "row 'test-00000'"]
    assert "strict_xml_format is 0, at most 1: <selection>" in lines[1]


def test_rows_to_which_a_reward_does_not_apply_are_no_problem(write_recipe, spoil, capsys):
    folder = spoil({number: {"pool": None} for number in range(4)})
    recipe = write_recipe(reward_funcs=["filtering_quality"])
    status, lines = run("--config", recipe, "--dataset_name", folder, "--splits", "test", capsys=capsys)
    assert (status, lines) == (0, ["test: 4 right answers, 0 scores below the maximum"])


FRAGILE = """
def fragile(completions, id, **columns):
    if "test-00001" in id:
        raise ValueError("cannot judge this one")
    return [1.0] * len(completions)


def half(completions, **columns):
    return [0.5] * len(completions)
"""


def test_a_reward_that_fails_ends_with_its_message(write_recipe, capsys, own_module):
    own_module("own_validate", FRAGILE)
    recipe = write_recipe(reward_funcs=["own_validate.fragile"])
    status, _ = run("--config", recipe, "--splits", "test", capsys=capsys)
    assert "error: reward 'fragile' failed at row 'test-00001': ValueError: cannot judge this one" in status


def test_a_reward_that_skips_its_failures_does_not_hide_them_here(write_recipe, capsys, own_module):
    own_module("own_validate", FRAGILE)
    recipe = write_recipe(reward_funcs=[{"name": "own_validate.fragile", "on_error": "skip"}])
    status, lines = run("--config", recipe, "--splits", "test", capsys=capsys)
    assert status == 1
    assert "reward 'fragile' failed at row 'test-00001': ValueError: cannot judge this one" in "\n".join(lines)


def test_of_an_own_reward_the_maximum_is_one(write_recipe, capsys, own_module):
    own_module("own_validate", FRAGILE)
    status, lines = run(
        "--config", write_recipe(reward_funcs=["own_validate.half"]), "--splits", "train", capsys=capsys
    )
    assert status == 1
    assert lines[0] == "train: 24 right answers, 24 scores below the maximum"
    assert lines[1].startswith("row 'train-00000': half is 0.5, at most 1: <selection>")
    assert len(lines) == 22
    assert lines[-1] == "... and 4 more"


def test_visual_question_answering_with_and_without_tags(tmp_path, report_data, write_recipe, capsys, read_jsonl):
    image = str(report_data / read_jsonl(report_data / "test.jsonl")[0]["images"][0])
    rows = [
        {"id": "sure", "image": image, "question": "what?", "answers": ["cat"] * 10},
        {"id": "split", "image": image, "question": "what?", "answers": ["cat", "dog"] * 2},
    ]
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for answer_tags in (False, True):
        recipe = write_recipe(
            dataset_name=str(tmp_path / "vqa"), reward_funcs=["vqa_accuracy"], answer_tags=answer_tags, agents=None
        )
        status, lines = run("--config", recipe, "--splits", "test", capsys=capsys)
        gold = "<answer>cat</answer>" if answer_tags else "cat"
        assert status == 1  # of cat, dog, cat, dog the best has 2 matches: (2 * 1/3 + 2 * 2/3) / 4
        assert lines[1:] == [f"row 'split': vqa_accuracy is 0.5, at most 1: {gold}"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_funcs": None}, "recipe.yaml: field 'reward_funcs': missing"),
        ({"dataset_name": None}, "recipe.yaml: field 'dataset_name': missing"),
        ({"reward_funcs": ["nonsense"]}, "unknown reward 'nonsense'; expected one of agent_selection"),
        ({"reward_funcs": "agent_selection"}, "reward_funcs: expected a list of entries, found 'agent_selection'"),
        ({"agents": ["blurr"]}, "unknown agent 'blurr'"),
        ({"reward_funcs": ["vqa_accuracy"]}, "reward 'vqa_accuracy' needs the column 'answers'"),
        ({"dataset_name": "nowhere/at/all"}, "nowhere/at/all: no such file or folder"),
    ],
)
def test_what_ends_with_a_message(write_recipe, capsys, changes, message):
    status, _ = run("--config", write_recipe(**changes), "--splits", "test", capsys=capsys)
    assert status.startswith("error: ")
    assert message in status


def test_data_without_right_answers_cannot_be_validated(tmp_path, write_recipe, capsys):
    (tmp_path / "test.jsonl").write_text('{"prompt": [{"role": "user", "content": "hi"}]}', encoding="utf-8")
    status, _ = run("--config", write_recipe(dataset_name=str(tmp_path)), "--splits", "test", capsys=capsys)
    assert status == f"error: {tmp_path}: rows of this task carry no right answer to validate"


def test_the_command_ends_with_status_1(run_command, write_recipe, spoil):
    folder = spoil({2: {"ground_truth_filtered_data": []}})
    recipe = write_recipe(reward_funcs=["filtering_quality"])
    finished = run_command("-m", "rewards.validate", "--config", recipe, "--dataset_name", folder, "--splits", "test")
    assert finished.returncode == 1
    assert "row 'test-00002': filtering_quality" in finished.stdout
    assert "Traceback" not in finished.stderr
