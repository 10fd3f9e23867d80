"""What a reward model decides by, in the report of its run."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from preference_runs import settings, write_preferences

from data.preferences import load_preferences
from models.families.loading import load_processor
from models.reward.load import from_backbone
from trainers.report.page import add_held_out
from trainers.reward import RewardConfig, RewardTrainer


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """Function: settings -> a trainer after a run with report.

    The better answer of each pair begins with "It is": no image is needed to find it.
    """
    folder = write_preferences(tmp_path_factory.mktemp("preferences") / "data", without_image=(3,))
    records, held_out = (load_preferences(str(folder), split)[0] for split in ("train", "validation"))

    def train(eval_records=held_out, **changes) -> RewardTrainer:
        torch.manual_seed(0)
        args = RewardConfig(**settings(output_dir=str(tmp_path_factory.mktemp("run")), **changes))
        model = from_backbone(tiny_model, args.model_settings(), dtype=torch.float32)
        processor = load_processor(str(tiny_model), max_pixels=1024)
        trainer = RewardTrainer(model, args, None, records, eval_records, processor, report=True)
        trainer.train()
        return trainer

    return train


@pytest.fixture(scope="module")
def trained(run) -> RewardTrainer:
    return run(max_steps=30, per_device_train_batch_size=8, learning_rate=3e-3)


def text_of(trainer: RewardTrainer, name: str) -> str:
    return (Path(trainer.args.output_dir) / name).read_text(encoding="utf-8")


def test_a_model_that_goes_by_the_words_is_as_good_without_the_images(trained):
    [diagnosis] = trained.run_record.diagnoses
    figures = diagnosis["figures"]
    assert (figures["rows"], figures["without_images"]) == (16, 1)
    assert {found["rows"] for found in figures["images"].values()} == {15}
    for found in figures["images"].values():
        assert found["share"] > 0.9
    assert figures["images"]["blank"]["difference"]["estimate"] > -0.1
    assert figures["order"] is None


def test_figures_are_those_of_the_models_own_scores(trained):
    model, figures = trained.model, trained.run_record.diagnoses[0]["figures"]
    model.processor = trained.processing_class
    records = [record for record in trained.records[1] if record.images]
    for variant, images in (("with", None), ("without", [])):
        rows = [(one, text) for one in records for text in one.response]
        shown = [one.images if images is None else images for one, _ in rows]
        scores = model.score([one.prompt() for one, _ in rows], shown, [text for _, text in rows]).view(-1, 2)
        accuracy = (scores[:, 1] > scores[:, 0]).double().mean().item()  # the second one is better
        assert figures["images"][variant]["share"] == pytest.approx(accuracy)


def test_report_and_card_show_table_and_picture(trained):
    for name in ("report.html", "README.md"):
        text = text_of(trained, name)
        assert "What it decides by" in text
        assert "with the image of another row" in text
        assert "1 rows have no images" in text
    with Image.open(Path(trained.args.output_dir) / "figures" / "diagnosis_1.png") as picture:
        assert picture.size == (1344, 504)
    assert "(figures/diagnosis_1.png)" in text_of(trained, "README.md")


def test_the_diagnosis_changes_nothing_of_the_run_and_can_be_left_out(run):
    plain, diagnosed = run(diagnosis_rows=0), run(diagnosis_rows=5)
    assert plain.run_record.diagnoses == []
    assert diagnosed.run_record.diagnoses[0]["figures"]["rows"] == 5
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, diagnosed.model.state_dict()[name]), name
    assert run(eval_records=None).run_record.diagnoses == []


def test_one_that_fails_costs_the_section_alone(run, monkeypatch, capsys):
    states = []

    def fail(trainer, _):
        states.append((trainer.model.training, torch.is_grad_enabled()))
        raise ValueError("no memory left")

    monkeypatch.setattr(RewardTrainer, "scores_of", fail)
    trainer = run(max_steps=1)
    assert set(states) == {(False, False)}
    assert "the report has no diagnosis: ValueError: no memory left" in capsys.readouterr().err
    assert "What it decides by" not in text_of(trainer, "report.html")


def test_that_of_the_bench_is_added_to_a_finished_run(trained, tmp_path):
    figures = trained.run_record.diagnoses[0]["figures"]
    groups = {"general": {"accuracy": 1.0, "wilson": [0.5, 1.0], "count": 15}}
    overall = {"overall": 1.0, "overall_wilson": [0.5, 1.0], "count": 15}
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"model": "m", "groups": groups, **overall, "diagnosis": figures}))
    for _ in range(2):
        page = add_held_out(Path(trained.args.output_dir), [summary]).read_text(encoding="utf-8")
        assert page.count("with the image of another row") == 2 * 2  # in table and picture, of both
    assert str(summary) in page
