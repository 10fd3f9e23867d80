"""`python -m rewards.eval --model`: completions of a tiny model on reports, generated and scored."""

import json

import pytest

from rewards.eval import main

RECIPE = """
agents: [blur_filter, exposure_filter, resolution_filter, exact_duplicate_filter, text_length_filter,
  answer_consistency_filter]
max_pixels: 1024
max_completion_length: 6
reward_funcs: [agent_selection, filtering_quality, strict_xml_format]
"""
IDS = [f"test-{number:05d}" for number in range(4)]


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory, tiny_model, report_data):
    """Function: further arguments -> output folder of an evaluation of the four test reports."""

    def run(*arguments: str):
        folder = tmp_path_factory.mktemp("eval")
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        main(
            ["--dataset_name", str(report_data), "--model", str(tiny_model), "--config", str(folder / "recipe.yaml")]
            + ["--output_dir", str(folder / "out"), *arguments]
        )
        return folder / "out"

    return run


@pytest.fixture(scope="module")
def greedy(evaluate):
    return evaluate()


@pytest.fixture(scope="module")
def sampled(evaluate):
    return evaluate("--num_generations", "2", "--temperature", "1.0")


def test_greedy_completions_are_scored_for_every_row(greedy, read_jsonl):
    scores = read_jsonl(greedy / "scores.jsonl")
    assert [(row["id"], row["generation"]) for row in scores] == [(name, 0) for name in IDS]
    assert set(scores[0]) == {"id", "generation", "agent_selection", "filtering_quality", "strict_xml_format"}
    assert all(row["agent_selection"] == row["strict_xml_format"] == 0.0 for row in scores)  # it learnt nothing yet
    summary = json.loads((greedy / "summary.json").read_text(encoding="utf-8"))
    assert summary["rewards"]["filtering_quality"]["count"] == 4


def test_completions_are_kept_with_what_they_answer(greedy, read_jsonl, report_data):
    rows = read_jsonl(greedy / "completions.jsonl")
    records = read_jsonl(report_data / "test.jsonl")
    assert [row["id"] for row in rows] == IDS
    for row, record in zip(rows, records, strict=True):
        assert row["prompt"][-1] == {"role": "user", "content": record["report"]}
        assert row["ground_truth_agents"] == record["ground_truth_agents"]
        assert row["images"] == [str(report_data / image) for image in record["images"]]
        assert isinstance(row["completion"], str)


def test_greedy_completions_are_the_same_again_in_other_batches(greedy, evaluate, read_jsonl):
    again = evaluate("--batch_size", "3", "--limit", "2")
    texts = [row["completion"] for row in read_jsonl(greedy / "completions.jsonl")]
    assert [row["completion"] for row in read_jsonl(again / "completions.jsonl")] == texts[:2]


def test_several_generations_differ_and_are_numbered(sampled, read_jsonl):
    scores = read_jsonl(sampled / "scores.jsonl")
    assert [(row["id"], row["generation"]) for row in scores] == [(name, n) for name in IDS for n in (0, 1)]
    texts = [row["completion"] for row in read_jsonl(sampled / "completions.jsonl")]
    assert len(set(texts)) > 4


def test_the_seed_decides_what_is_sampled(sampled, evaluate, read_jsonl):
    arguments = ("--num_generations", "2", "--temperature", "1.0", "--seed")
    texts = [
        [row["completion"] for row in read_jsonl(folder / "completions.jsonl")]
        for folder in (sampled, evaluate(*arguments, "0"), evaluate(*arguments, "1"))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_completions_can_be_scored_again(sampled, tmp_path, read_jsonl):
    rewards = ("agent_selection", "filtering_quality", "strict_xml_format")
    main(["--dataset_name", str(sampled / "completions.jsonl"), "--output_dir", str(tmp_path), "--rewards", *rewards])
    assert read_jsonl(tmp_path / "scores.jsonl") == read_jsonl(sampled / "scores.jsonl")


def test_sampled_generations_can_be_compared_with_greedy_ones(greedy, sampled, tmp_path):
    main(["--compare", str(greedy / "scores.jsonl"), str(sampled / "scores.jsonl"), "--output_dir", str(tmp_path)])
    comparison = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert comparison["agent_selection"]["rows"] == 4


def test_the_longest_completion_can_be_given(evaluate, read_jsonl, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = evaluate("--max_new_tokens", "1", "--limit", "2")
    texts = [row["completion"] for row in read_jsonl(folder / "completions.jsonl")]
    assert [len(tokenizer(text)["input_ids"]) <= 1 for text in texts] == [True, True]


def test_wrong_rewards_stop_before_the_model_is_loaded(report_data, tmp_path):
    arguments = ["--dataset_name", str(report_data), "--model", "someone/no-such-model", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="unknown reward 'nonsense'"):
        main([*arguments, "--rewards", "nonsense"])


def test_a_token_for_an_image_is_named_with_its_row_before_the_model_is_loaded(tiny_family, tmp_path, monkeypatch):
    monkeypatch.setattr("models.vlm.LocalVLM.from_name", lambda *_: pytest.fail("loaded"))
    texts = ("what?", "which <image_soft_token>?")
    rows = [{"id": number, "prompt": text, "answers": ["red"] * 10} for number, text in enumerate(texts)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        main(
            ["--dataset_name", str(tmp_path), "--model", str(tiny_family("gemma3")), "--rewards", "vqa_accuracy"]
            + ["--output_dir", str(tmp_path / "out")]
        )
    assert f"{tmp_path}: row 1: field 'prompt': the text contains <image_soft_token>" in str(refused.value)
