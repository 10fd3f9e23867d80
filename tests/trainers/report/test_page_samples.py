"""Samples of each trainer: right answers beside them, the same prompts at every step, and training as without them."""

import pytest
import torch
from preference_runs import settings, write_preferences
from report_agents import AGENT_NAMES

from trainers.report.fixed_samples import chosen, held_out_rows, rollout_samples, undisturbed
from trainers.report.page import write_report
from trainers.report.record import RunInfo, RunRecord
from trainers.report.samples import SampleLog, right_answers
from trainers.setup.recipes import DataArguments


def _weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def _assert_equal(first: dict, second: dict) -> None:
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def _page(folder) -> str:
    return write_report(folder, RunRecord(RunInfo(*["x"] * 5)), []).read_text(encoding="utf-8")


# -- GRPO -------------------------------------------------------------------------------------------------------------


def test_grpo_shows_the_same_held_out_prompts_at_every_step_and_trains_as_without(make_grpo, task_rows, tmp_path):
    from models.families.loading import image_reader

    plain = make_grpo(max_steps=3)
    plain.train()
    log = SampleLog(tmp_path / "run")
    trainer = make_grpo(max_steps=3, init={"samples": log})
    rows = task_rows("validation")
    trainer.add_callback(rollout_samples(trainer, log, rows, "held out", image_reader(trainer.processing_class)))
    trainer.train()
    _assert_equal(_weights(plain), _weights(trainer))
    fixed, batches = log.read("held out"), log.read("batch")
    assert [(sample.step, sample.number) for sample in fixed] == [(step, n) for step in range(4) for n in range(3)]
    few = chosen(rows, trainer.args.seed)
    for sample in fixed:
        assert sample.prompt[-1].text == few[sample.number]["prompt"][-1]["content"]
        assert sample.answers["right (gold)"] == few[sample.number]["gold"]
    assert {sample.completions[0] for sample in fixed if sample.step == 0} != {""}
    assert [sample.step for sample in batches] == [0, 1, 2]
    assert all("right (ground_truth_agents)" in sample.answers for sample in batches)
    page = _page(tmp_path / "run")
    assert "Held-out prompts: the model was not trained on them." in page
    assert page.count("right (ground_truth_agents)") == 6


def test_grpo_without_held_out_rows_says_that_it_shows_training_data(tmp_path, task_rows):
    rows = task_rows()
    (tmp_path / "train.jsonl").write_text("", encoding="utf-8")
    for source in (tmp_path, tmp_path / "train.jsonl"):
        assert held_out_rows(DataArguments(str(source)), rows, None) == (rows, "training data")
    assert held_out_rows(DataArguments(str(tmp_path)), rows, rows[:2]) == (rows[:2], "held out")


def test_validation_rows_are_found_beside_the_training_rows(report_data, task_rows):
    found, source = held_out_rows(DataArguments(str(report_data)), task_rows(), None)
    assert source == "held out"
    assert [row["id"] for row in found] == [row["id"] for row in task_rows("validation")]


def test_a_validation_split_that_is_trained_on_is_not_held_out(report_data, task_rows):
    rows, script = task_rows("validation"), DataArguments(str(report_data), agents=AGENT_NAMES)
    assert held_out_rows(script, rows, None) == (rows, "training data")
    found, source = held_out_rows(script, rows[1:], None)
    assert ([row["id"] for row in found], source) == ([rows[0]["id"]], "held out")


def test_nothing_is_disturbed(make_grpo):
    import random

    import numpy as np

    trainer = make_grpo()
    trainer.model.train()
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    with undisturbed(trainer):
        assert not trainer.model.training
        torch.rand(3), np.random.rand(3), random.random()
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_samples_that_fail_are_said_and_end_no_run(make_grpo, tmp_path, capsys):
    from trainers.report.fixed_samples import FixedSamples

    log = SampleLog(tmp_path / "run")
    trainer = make_grpo()
    trainer.add_callback(FixedSamples(trainer, log, lambda step: 1 / 0))
    trainer.train()
    assert capsys.readouterr().err.count("the report has no fixed prompts from step 0 on: ZeroDivisionError") == 1


# -- right answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": 1, "prompt": [], "gold": "red", "other": 5}, {"right (gold)": "red"}),
        ({"answers": ["two"] * 9 + ["2"]}, {"right (answers)": "two (9), 2"}),
        ({"solution": "x = 1", "answers": None}, {"right (solution)": "x = 1"}),
        ({"ground_truth_agents": ["a", "b"]}, {"right (ground_truth_agents)": "a, b"}),
        ({"ground_truth_agents": []}, {"right (ground_truth_agents)": "none"}),
        ({"answer": {"x": 1}}, {"right (answer)": '{"x": 1}'}),
        ({"answer": 7}, {"right (answer)": "7"}),
        ({"id": 1, "images": [], "wanted_word": "red"}, {"column wanted_word": "red"}),
        ({"target": [{"role": "assistant", "content": "yes"}]}, {"right (target)": "yes"}),
    ],
)
def test_right_answers(row, expected):
    assert right_answers(row) == expected


# -- SFT --------------------------------------------------------------------------------------------------------------


def test_sft_shows_prompt_right_answer_and_what_the_model_writes(tiny_model, task_rows, tmp_path):
    from models.families.loading import image_reader, load_processor
    from trainers.report.fixed_samples import demonstration_samples
    from trainers.setup.task_data import to_dataset
    from trainers.sft import SFTConfig, SFTTrainer, with_completions

    processor = load_processor(str(tiny_model), max_pixels=1024)
    bounds = image_reader(processor)
    rows, held_out = (with_completions(task_rows(split), "reports") for split in ("train", "validation"))
    columns = ("prompt", "completion", "images")

    def run(log: SampleLog | None) -> SFTTrainer:
        args = SFTConfig(
            output_dir=str(tmp_path / "run"),
            **settings(max_steps=2, model_init_kwargs={"dtype": "float32"}, remove_unused_columns=False),
        )
        data = to_dataset(rows, bounds, columns)
        trainer = SFTTrainer(str(tiny_model), args=args, train_dataset=data, processing_class=processor)
        if log is not None:
            trainer.add_callback(demonstration_samples(trainer, log, held_out, "held out", rows, bounds))
        trainer.train()
        return trainer

    log = SampleLog(tmp_path / "run")
    _assert_equal(_weights(run(None)), _weights(run(log)))
    fixed, batches = log.read("held out"), log.read("batch")
    assert [(sample.step, sample.number) for sample in fixed] == [(step, n) for step in range(3) for n in range(3)]
    assert [sample.step for sample in batches] == [0, 1, 2]
    answers = {row["completion"][0]["content"] for row in rows}
    for sample in batches:
        assert sample.answers["right"] in answers
        assert sample.marks == ["differs"]
        assert 0 <= sample.scores[0]["token accuracy"] <= 1
    page = _page(tmp_path / "run")
    assert "token accuracy" in page


# -- reward models ----------------------------------------------------------------------------------------------------


def test_a_reward_model_shows_who_is_chosen_and_whether_it_agrees(tiny_reward_model, tmp_path):
    from data.preferences import load_preferences
    from models.reward.load import load_reward_model
    from trainers.reward import RewardConfig, RewardTrainer

    folder = write_preferences(tmp_path / "data")
    records, held_out = (load_preferences(str(folder), split)[0] for split in ("train", "validation"))

    def run(log: SampleLog) -> RewardTrainer:
        model, processor = load_reward_model(str(tiny_reward_model), device="cpu")
        args = RewardConfig(output_dir=str(log.path.parent), **settings())
        trainer = RewardTrainer(model.train(), args, None, records, held_out, processor, samples=log)
        if log.path.parent.name == "shown":
            trainer.add_callback(trainer.fixed_samples())
        trainer.train()
        return trainer

    log = SampleLog(tmp_path / "shown")
    _assert_equal(_weights(run(SampleLog(tmp_path / "plain"))), _weights(run(log)))
    fixed, batches = log.read("held out"), log.read("batch")
    assert len(fixed) == 12
    for sample in [*fixed, *batches]:
        chosen_first = sample.scores[0]["rank by people"] < sample.scores[1]["rank by people"]
        assert sample.marks == (["chosen", "rejected"] if chosen_first else ["rejected", "chosen"])
        scores = dict(zip(sample.marks, (scores["score"] for scores in sample.scores), strict=True))
        assert sample.verdict[0] == (scores["chosen"] > scores["rejected"])
        assert sample.advantages == []
    assert [sample.scores for sample in fixed[:3]] != [sample.scores for sample in fixed[-3:]]
    page = _page(tmp_path / "shown")
    assert 'class="right">chosen' in page
    assert 'class="wrong">rejected' in page
    assert "advantage" not in page


def test_rankings_of_three_responses_count_pairs(tiny_reward_model):
    from data.preferences import PreferenceRecord
    from trainers.reward import RewardTrainer

    record = PreferenceRecord(query="which?", response=["a", "b", "c"], human_ranking=[0, 1, 2])
    trainer = RewardTrainer.__new__(RewardTrainer)
    trainer.reward_config = type("Config", (), {"system_prompt": None})
    sample = trainer.sample_of(record, [3.0, 1.0, 2.0])
    assert sample.verdict == (False, "2 of 3 pairs in people's order")
    assert list(sample.marks) == ["chosen", "rejected", "rejected"]
    assert trainer.sample_of(record, [3.0, 2.0, 1.0]).verdict[0]
    assert not trainer.sample_of(record, [1.0, 1.0, 1.0]).verdict[0]


# -- stored groups ----------------------------------------------------------------------------------------------------


def test_stored_groups_of_a_selector_show_weights_and_probabilities(make_selector_trainer, tmp_path):
    from trainers.rce import RCEConfig, RCETrainer

    torch.manual_seed(0)
    plain = make_selector_trainer(RCETrainer, RCEConfig)
    plain.train()
    torch.manual_seed(0)
    trainer = make_selector_trainer(RCETrainer, RCEConfig)
    trainer.samples = log = SampleLog(tmp_path / "run")
    trainer.add_callback(trainer.fixed_samples())
    trainer.train()
    _assert_equal(_weights(plain), _weights(trainer))
    fixed, batches = log.read("training data"), log.read("batch")
    assert [(sample.step, sample.number) for sample in fixed] == [(step, n) for step in range(4) for n in range(3)]
    for sample in [*fixed, *batches]:
        assert sample.prompt[0].text.startswith("query ")
        assert sum(scores["probability"] for scores in sample.scores) == pytest.approx(1)
        assert sum(sample.advantages) == pytest.approx(1)
        assert sample.advantage_name == "weight"
        best = max(range(len(sample.scores)), key=lambda place: sample.scores[place]["reward"])
        assert sample.advantages[best] == max(sample.advantages)
    assert "query " in _page(tmp_path / "run")


def test_stored_completions_show_prompt_image_and_advantages(make_vlm_trainer, tmp_path):
    from trainers.offline_grpo import OfflineGRPOConfig, OfflineGRPOTrainer

    trainer = make_vlm_trainer(OfflineGRPOTrainer, OfflineGRPOConfig)
    trainer.samples = log = SampleLog(tmp_path / "run")
    trainer.add_callback(trainer.fixed_samples())
    trainer.train()
    batches = log.read("batch")
    assert [sample.step for sample in batches] == [0, 1]
    texts = {candidate.completion for group in trainer.train_groups for candidate in group.candidates}
    for sample in batches:
        assert sample.advantage_name == "advantage"
        assert set(sample.completions) <= texts
        assert len(sample.prompt) == 2
        assert sum(sample.advantages) == pytest.approx(0, abs=1e-4)
    assert len(log.read("training data")) == 9


# -- a whole run: T3, T18 ---------------------------------------------------------------------------------------------


def _reported(trainer, **info) -> tuple[str, str]:
    """Trains as the scripts do; report and card."""
    from pathlib import Path

    from trainers.report.publishing import ReportCallback
    from trainers.run.console import shorten_output

    trainer.run_info = RunInfo(*["x"] * 5, **info)
    trainer.add_callback(ReportCallback(trainer))
    shorten_output(trainer)
    trainer.train()
    trainer.create_model_card()
    folder = Path(trainer.args.output_dir)
    return tuple((folder / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))


def picky(completions, **columns) -> list[None]:
    return [None] * len(completions)


def by_length(completions, **columns) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


@pytest.mark.parametrize("others", [[], [by_length]], ids=["alone", "beside another"])
def test_t03_a_reward_that_applies_to_no_row_of_the_run(make_grpo, tmp_path, capsys, others, all_pictures):
    trainer = make_grpo(rewards=[picky, *others], init={"samples": SampleLog(tmp_path / "run")})
    page, card = _reported(trainer)
    printed = capsys.readouterr()
    assert "picky n" in printed.out
    assert "warning" not in printed.err
    assert "| rewards/picky/mean | n" in card
    assert "none" in page
    assert len(SampleLog(tmp_path / "run").read("batch")) == 2


def test_t18_a_run_that_keeps_its_best_model_reports_that_one(make_selector_trainer, pointer_groups):
    from trainers.groups.arguments import GroupArguments
    from trainers.groups.data import load_stored_groups
    from trainers.rce import RCEConfig, RCETrainer

    held_out = load_stored_groups(GroupArguments(dataset_name=str(pointer_groups)), "validation")
    trainer = make_selector_trainer(
        RCETrainer,
        RCEConfig,
        eval_groups=held_out,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        learning_rate=1e-3,
    )
    page, card = _reported(trainer, kind="selector")
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    kept = min(losses, key=losses.get)
    assert kept != 6
    assert f"| eval_loss | {losses[kept]:.5g} |" in card
    assert f"- **Steps:** {kept}, the best by `eval_loss` of 6" in card
    assert f"that of step {kept}, the best by eval_loss" in page
