"""The factor trainer: what it learns, what it leaves, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from evaluated import check_listed
from factor_runs import BACKBONE, FACTORS, labelled_images, small_predictor, write_labelled

from data.io.records import RecordError
from models.factors.predictor import load_factor_predictor
from trainers.factors import FactorTrainer, FactorTrainingConfig, main
from trainers.labels.data import FactorArguments, load_splits, positive_weights


@pytest.fixture(autouse=True, scope="module")
def one_picture() -> None:
    """All are drawn."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"), pictures=96)


OTHERS = ("qwen3_vl", "gemma3", "internvl")
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-2,
    "logging_steps": 5,
}


def recipe(path: Path, **settings) -> list[str]:
    """Arguments of the script, for a recipe with these settings."""
    common = SETTINGS | {
        "backbone": BACKBONE,
        "image_size": 32,
        "head_size": 16,
        "output_dir": str(path.parent / "run"),
    }
    content = {key: value for key, value in {**common, **settings}.items() if value is not None}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return ["--config", str(path)]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The output folder of a run that stops early, with the best of its checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    main(recipe(folder / "recipe.yaml", dataset_name=str(data), num_train_epochs=15, eval_strategy="epoch",
                save_strategy="epoch", save_total_limit=1, early_stopping_patience=3))  # fmt: skip
    return folder / "run"


def test_it_learns_and_beats_the_majority(finished):
    results = json.loads((finished / "factor_results.json").read_text())
    assert results["final"]["f1_micro"] > 0.9 > results["majority"]["f1_micro"]
    assert set(results["final"]) == {
        "bce", "map", "f1_micro", "f1_macro", "precision_micro", "recall_micro", "subset_accuracy",
    }  # fmt: skip


def test_the_stored_model_predicts_with_the_fitted_thresholds(finished, data):
    model = load_factor_predictor(str(finished), "cpu")
    results = json.loads((finished / "factor_results.json").read_text())
    assert dict(zip(FACTORS, model.config.thresholds, strict=True)) == results["thresholds"]
    test = labelled_images(data)[2]
    predicted = model.predict([record.image_path for record in test.records])
    right = sum(found == record.factors for found, record in zip(predicted, test.records, strict=True))
    assert right / len(test) == pytest.approx(results["final"]["subset_accuracy"])


def test_the_best_checkpoint_is_kept(finished):
    state = json.loads((finished / "trainer_state.json").read_text())
    evaluations = [entry for entry in state["log_history"] if "eval_map" in entry]
    check_listed("factors", evaluations[-1])
    averages = [entry["eval_map"] for entry in evaluations]
    assert state["best_metric"] == max(averages)
    best = load_factor_predictor(state["best_model_checkpoint"], "cpu").state_dict()
    kept = load_factor_predictor(str(finished), "cpu").state_dict()
    assert [name for name, value in best.items() if not value.equal(kept[name])] == []


def test_the_run_leaves_report_card_and_recipe(finished):
    report = (finished / "report.html").read_text()
    for text in (
        "F1 (micro), held out",
        "always the most frequent factors",
        "average precision",
        "precision and recall",
    ):
        assert text in report
    card = (finished / "README.md").read_text()
    assert "from models.factors.predictor import load_factor_predictor" in card
    assert "eval_map" in card
    assert (finished / "recipe.yaml").is_file()


def test_a_predictor_can_be_trained_on(finished, data, tmp_path):
    arguments = recipe(tmp_path / "r.yaml", dataset_name=str(data), backbone=None, model_name_or_path=str(finished),
                       max_steps=1, learning_rate=0.0, save_strategy="no", pos_weight="none")  # fmt: skip
    main(arguments)
    before = load_factor_predictor(str(finished), "cpu")
    after = load_factor_predictor(str(tmp_path / "run"), "cpu")
    assert before.head[1].weight.equal(after.head[1].weight)
    assert after.config.pos_weight is None


@pytest.mark.parametrize("family", ["qwen2_vl", *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
def test_the_vision_tower_of_any_family_learns(data, tiny_family, tmp_path, family):
    args = FactorTrainingConfig(output_dir=str(tmp_path), **SETTINGS | {"learning_rate": 3e-3}, num_train_epochs=12,
                                save_strategy="no")  # fmt: skip
    trainer = FactorTrainer(small_predictor(str(tiny_family(family))), args, *labelled_images(data))
    trainer.train()
    assert trainer.results["final"]["f1_micro"] > 0.9


def test_weights_of_positive_examples():
    labels = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=np.float32)
    assert positive_weights(labels, 10.0) == pytest.approx([1 / 3, 4.0, 3.0])
    assert positive_weights(labels, 2.0) == [0.5, 2.0, 2.0]


def test_micro_batches_add_up_to_their_batch(data, tmp_path):
    """Two batches of 8 learn what one of 16 does, without batch norms that see each alone."""
    found = []
    for size, accumulated in ((16, 1), (8, 2)):
        settings = SETTINGS | {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        args = FactorTrainingConfig(output_dir=str(tmp_path), max_steps=3, save_strategy="no", optim="sgd",
                                    trained_blocks=0, **settings)  # fmt: skip
        trainer = FactorTrainer(small_predictor(), args, *labelled_images(data))
        trainer.train()
        found.append(trainer.model.head[1].weight.detach().clone())
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": None}, "expected either model_name_or_path or backbone, found neither"),
        ({"model_name_or_path": "x/y"}, "expected either model_name_or_path or backbone, found both"),
        ({"backbone": {"model_type": "zoom"}}, "backbone: "),
        ({"backbone": None, "model_name_or_path": "nowhere/nothing"}, "model_name_or_path: 'nowhere/nothing' cannot"),
        ({"trained_blocks": 9}, "trained_blocks: expected 0 to 4, found 9"),
        ({"early_stopping_patience": 0}, "key 'early_stopping_patience': expected at least 1, found 0"),
        ({"max_pos_weight": 0.5}, "key 'max_pos_weight': expected at least 1, found 0.5"),
        ({"enlarge": 0}, "key 'enlarge': expected at least 1, found 0"),
        ({"pos_weight": "some"}, "key 'pos_weight'"),
        ({"factors": ["a"]}, "unknown key 'factors'"),
        ({"dataset_name": "nowhere"}, "cannot be read: No such file or directory"),
    ],
)
def test_bad_recipes_are_named(data, tmp_path, capsys, settings, message):
    error = refused(capsys, recipe(tmp_path / "r.yaml", **{"dataset_name": str(data), "max_steps": 1, **settings}))
    assert message in error
    assert "Traceback" not in error


def test_a_predictor_of_other_factors_is_refused(finished, data, tmp_path, capsys):
    content = json.loads((data / "factors.json").read_text())
    content["factors"] = content["factors"][:2]
    other = write_labelled(tmp_path / "other", pictures=4)
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (other / f"{split}.jsonl").read_text().splitlines()]
        text = "".join(
            json.dumps(row | {"factors": [f for f in row["factors"] if f != "wide"]}) + "\n" for row in rows
        )
        (other / f"{split}.jsonl").write_text(text)
    (other / "factors.json").write_text(json.dumps(content))
    error = refused(capsys, recipe(tmp_path / "r.yaml", dataset_name=str(other), backbone=None,
                                   model_name_or_path=str(finished)))  # fmt: skip
    assert "predicts bright, red, wide; the data set has bright, red" in error


def test_every_broken_record_is_named_before_training(tmp_path):
    folder = write_labelled(tmp_path / "broken", pictures=8)
    (folder / "train_0.png").unlink()
    rows = (folder / "test.jsonl").read_text().splitlines()
    rows[1] = json.dumps(json.loads(rows[1]) | {"factors": ["zoom"]})
    (folder / "test.jsonl").write_text("\n".join(rows))
    (folder / "validation.jsonl").write_bytes(b"\xff\n")
    from data.factors import load_factor_set

    with pytest.raises(RecordError) as caught:
        load_splits(FactorArguments(dataset_name=str(folder)), load_factor_set(folder))
    text = str(caught.value)
    assert text.startswith("1 of 12 images cannot be read; 2 problems beside:\n")
    assert "train_0.png: no such image file" in text
    assert "validation.jsonl:1: not UTF-8 text" in text
    assert "test.jsonl:2: field 'factors': unknown factor 'zoom'; expected some of bright, red, wide" in text


def test_validate_only_checks_and_writes_nothing(data, tmp_path, capsys):
    main([*recipe(tmp_path / "r.yaml", dataset_name=str(data)), "--validate_only", "true"])
    printed = capsys.readouterr().out
    assert "train: 96 images" in printed
    assert "memory estimate" in printed
    assert printed.splitlines()[-1] == "valid"
    assert not (tmp_path / "run").exists()


def test_a_recipe_for_a_model_out_of_reach_can_be_validated(data, tmp_path, capsys):
    arguments = recipe(
        tmp_path / "r.yaml", dataset_name=str(data), backbone=None, model_name_or_path="nowhere/nothing"
    )
    main([*arguments, "--validate_only", "true"])
    assert "not possible, nowhere/nothing cannot be reached" in capsys.readouterr().out
