"""Stored completions: scored as `rewards.eval` scores them, the same however often the run was stopped."""

import json

import pytest
from command_lines import with_options
from PIL import Image

from data.candidate_groups import load_groups
from data.io.records import read_rows, write_jsonl
from rewards import eval as rewards_eval
from rewards.registry import RewardSpecError
from rollouts import completions
from rollouts.completions import choose_weights, weighted_sum, with_image_files

RECIPE = "reward_funcs: [agent_selection, {name: strict_xml_format}]\nreward_weights: [2.0, 0.5]\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, report_data):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def command(data, model, output, *more) -> list[str]:
    found = ["--dataset_name", data, "--model", model, "--output", output, "--num_completions", 3]
    return with_options([*found, "--max_new_tokens", 6, "--batch_size", 4, "--limit", 8], more)


@pytest.fixture(scope="module")
def made(report_data, tiny_model, recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("completions") / "groups.jsonl"
    completions.main(command(report_data, tiny_model, output, "--config", recipe))
    return output


def test_a_group_for_each_row_in_order_with_what_its_rewards_need(made, report_data):
    groups = load_groups(made)
    rows = [row for _, row in read_rows(report_data, "train")][:8]
    assert [group.id for group in groups] == [row["id"] for row in rows]
    for group, row in zip(groups, rows, strict=True):
        assert [turn["role"] for turn in group.prompt] == ["system", "user"]
        assert group.prompt[1]["content"] == row["report"]
        assert group.ground_truth_agents == row["ground_truth_agents"]
        assert len(group.images) == 1
        assert len(group.candidates) == 3
        assert {candidate.gen_method for candidate in group.candidates} == {"model"}
    texts = [candidate.completion for group in groups for candidate in group.candidates]
    assert len(set(texts)) > 20


def test_scores_are_those_of_rewards_eval_and_the_reward_their_weighted_sum(made, report_data, recipe, tmp_path):
    rows = [row for _, row in read_rows(made)]
    flat = [
        {**{name: row[name] for name in ("id", "ground_truth_agents")}, "completion": candidate["completion"]}
        for row in rows
        for candidate in row["candidates"]
    ]
    write_jsonl(tmp_path / "flat.jsonl", flat)
    rewards_eval.main(
        [
            "--dataset_name",
            str(tmp_path / "flat.jsonl"),
            "--config",
            str(recipe),
            "--output_dir",
            str(tmp_path / "scores"),
        ]
    )
    scores = [row for _, row in read_rows(tmp_path / "scores" / "scores.jsonl")]
    candidates = [candidate for row in rows for candidate in row["candidates"]]
    for candidate, expected in zip(candidates, scores, strict=True):
        names = ("agent_selection", "strict_xml_format")
        assert candidate["scores"] == {name: expected[name] for name in names}
        assert candidate["reward"] == 2.0 * expected["agent_selection"] + 0.5 * expected["strict_xml_format"]


def test_rewards_of_right_answers(report_data, tiny_model, recipe, tmp_path, monkeypatch):
    """Every prompt is answered by its own right answer, by nonsense, and by another's."""
    from data.tasks import load_rows
    from filter_agents.registry import described_agents

    agents = described_agents()
    gold = {row["prompt"][1]["content"]: row["gold"] for row in load_rows(report_data, "train", agents)}
    monkeypatch.setattr(
        "models.generation.generate",
        lambda model, processor, prompts, *_: [[gold[turns[1]["content"]], "no", ""] for turns in prompts],
    )
    output = tmp_path / "groups.jsonl"
    completions.main(command(report_data, tiny_model, output, "--config", recipe))
    for group in load_groups(output):
        assert [candidate.reward for candidate in group.candidates] == [2.5, 0.0, 0.0]


def test_stopped_after_any_row_the_file_is_the_same(made, report_data, tiny_model, recipe, tmp_path):
    """Rows that a killed run left: some of a batch, and a torn one."""
    output = tmp_path / "groups.jsonl"
    arguments = command(report_data, tiny_model, output, "--config", recipe)
    completions.main(arguments)
    assert output.read_bytes() == made.read_bytes()
    (shard,) = (tmp_path / "groups.jsonl.parts").glob("shard-*.jsonl")
    lines = shard.read_bytes().splitlines(keepends=True)
    for kept in (1, 5):
        shard.write_bytes(b"".join(lines[:kept]) + lines[kept][:30])
        output.unlink()
        completions.main(arguments)
        assert output.read_bytes() == made.read_bytes()


def test_the_seed_and_the_rows_decide_what_is_sampled(made, report_data, tiny_model, recipe, tmp_path):
    def texts(path):
        return [[candidate.completion for candidate in group.candidates] for group in load_groups(path)]

    more = ["--config", recipe]
    completions.main(command(report_data, tiny_model, tmp_path / "seed.jsonl", *more, "--seed", 1))
    assert texts(tmp_path / "seed.jsonl") != texts(made)
    completions.main(command(report_data, tiny_model, tmp_path / "few.jsonl", *more, "--limit", 4))
    assert texts(tmp_path / "few.jsonl") == texts(made)[:4]


def test_two_processes_make_the_same_file(made, report_data, tiny_model, recipe, tmp_path, run_warm):
    output = tmp_path / "groups.jsonl"
    arguments = command(report_data, tiny_model, output, "--config", recipe)
    found = run_warm("-m", "rollouts.completions", *arguments, processes=2)
    assert found.returncode == 0, found.stderr
    assert output.read_bytes() == made.read_bytes()


def test_rows_of_visual_question_answering(selection_files, tiny_model, tmp_path):
    output = tmp_path / "groups.jsonl"
    completions.main(command(selection_files, tiny_model, output, "--rewards", "vqa_accuracy"))
    groups = load_groups(output)
    assert [group.id for group in groups] == [f"train-{number}" for number in range(8)]
    assert all(len(group.answers) == 10 for group in groups)
    assert all(
        candidate.reward == candidate.scores["vqa_accuracy"] for group in groups for candidate in group.candidates
    )


def test_pictures_that_are_no_files_are_stored_once(tmp_path):
    picture = Image.new("RGB", (16, 16), "teal")
    row = with_image_files({"images": [picture, "here.png", picture.copy()]}, tmp_path)
    assert row["images"][1] == "here.png"
    assert row["images"][0] == row["images"][2]
    assert Image.open(row["images"][0]).getpixel((3, 3)) == picture.getpixel((3, 3))
    assert len(list(tmp_path.iterdir())) == 1


def test_weights():
    recipe = {"reward_funcs": ["a", {"name": "x.b"}], "reward_weights": [2, 3]}
    assert choose_weights(["x.b"], None, recipe) == {"b": 3.0}
    assert choose_weights(["a", "c"], None, recipe) == {"a": 2.0, "c": 1.0}
    assert choose_weights(["a", "c"], [4, 5], recipe) == {"a": 4.0, "c": 5.0}
    assert choose_weights(["a"], None, {}) == {"a": 1.0}
    with pytest.raises(RewardSpecError, match=r"--weights: expected 2 numbers, one for each of a, c; found \[4\]"):
        choose_weights(["a", "c"], [4], recipe)
    with pytest.raises(RewardSpecError, match="reward_weights: expected 2 numbers, .* a, b; found \\[1\\]"):
        choose_weights(["a"], None, {**recipe, "reward_weights": [1]})
    assert weighted_sum({"a": None, "b": None}, {"a": 1.0, "b": 1.0}) is None
    assert weighted_sum({"a": 0.25, "b": None, "c": 1.0}, {"a": 2.0, "b": 1.0, "c": -1.0}) == -0.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rewards", "nonsense"], "nonsense"),
        (["--temperature", "0"], "--temperature: expected a number above 0"),
        (["--num_completions", "0"], "--num_completions: expected at least 1"),
        (["--rewards", "vqa_accuracy"], "reward 'vqa_accuracy' needs the column 'answers'"),
        ([], "no rewards"),
    ],
)
def test_errors_come_before_the_model_is_loaded(report_data, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as error:
        completions.main(command(report_data, "someone/no-such-model", tmp_path / "out.jsonl", *more))
    assert message in f"{error.value} {capsys.readouterr().err}"


def test_a_failing_reward_stops_the_run_or_is_counted(report_data, tiny_model, tmp_path, monkeypatch, capsys):
    (tmp_path / "picky_reward.py").write_text(
        "def picky(completions, id, **columns):\n"
        "    if 'train-00002' in id:\n"
        "        raise KeyError('that one')\n"
        "    return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rewards = ["--rewards", "picky_reward.picky"]
    with pytest.raises(SystemExit, match="reward 'picky' failed at row 'train-00002'"):
        completions.main(command(report_data, tiny_model, tmp_path / "out.jsonl", *rewards))
    completions.main(command(report_data, tiny_model, tmp_path / "skip.jsonl", *rewards, "--on_error", "skip"))
    rewards_found = {group.id: group.candidates[0].reward for group in load_groups(tmp_path / "skip.jsonl")}
    assert [item for item, reward in rewards_found.items() if reward is None] == ["train-00002"]
    assert "KeyError" in capsys.readouterr().err


def test_groups_are_json_without_the_right_answers(made):
    for line in made.read_text().splitlines():
        assert {"gold", "pool"}.isdisjoint(json.loads(line))
