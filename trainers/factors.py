"""Factor predictor: a model learns which quality factors apply to an image (multi-label, binary cross-entropy).

    vlm-posttrain factors --config factors
    accelerate launch trainers/factors.py --config recipes/factors.yaml

Runs transformers' Trainer on labelled images (data/factors.py). The model is an image backbone or the vision tower of
a vision-language model, with a head (models/factors/predictor.py). See docs/factors.md.
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "factors", "FactorArguments", "FactorTrainingConfig", "ModelConfig")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import EvalPrediction, TrainerCallback
from trl import ModelConfig

from data.factors import load_factor_set
from data.io.records import write_json
from models.factors.metrics import choice_metrics, factor_metrics, fit_thresholds, majority_choice
from models.factors.model import DEFAULT_THRESHOLD, FactorConfig, FactorPredictor
from models.factors.synced_batch_norm import sync_batch_norms
from trainers.labels.data import (
    FactorArguments,
    FactorCollator,
    LabelledImages,
    labelled_images,
    load_splits,
    positive_weights,
)
from trainers.labels.model import NEW_BACKBONE, check_factors, load_predictor, make_predictor, stored_factors
from trainers.mixins.checkpoints import CompleteCheckpoints
from trainers.mixins.enough_rows import TrainsSomething, check_enough_rows
from trainers.mixins.image_bounds import SIZES, PixelArguments
from trainers.mixins.non_finite import FiniteTraining
from trainers.report.publishing import PublishedRun
from trainers.run.console import say
from trainers.run.early_stopping import EarlyStoppingArguments
from trainers.run.resuming import begin_run
from trainers.run.script import readable_errors, set_up, train_and_record
from trainers.setup.default_config import CheckedSettings, config_or_default
from trainers.setup.recipes import RecipeError
from trainers.setup.zero_stage import leave_weights_whole

RESULTS_FILE = "factor_results.json"


@dataclass
class FactorTrainingConfig(CheckedSettings, PixelArguments, EarlyStoppingArguments, transformers.TrainingArguments):
    """`transformers.TrainingArguments`, with the settings of the predictor and of its loss."""

    default_best_metric = "eval_map"

    image_size: int = field(default=224, metadata={"help": "Image backbones: side of the canvas, in pixels."})
    enlarge: int = field(
        default=1, metadata={"help": "Image backbones: enlarge pictures by this factor first, by repeating pixels."}
    )
    head_size: int = field(default=256, metadata={"help": "Width of the head's hidden layer."})
    head_dropout: float = field(default=0.1, metadata={"help": "Dropout in the head."})
    trained_blocks: int | None = field(
        default=None,
        metadata={"help": "Train so many last stages or layers of the backbone; 0 none of it, null all of it."},
    )
    pos_weight: Literal["none", "balanced"] = field(
        default="balanced",
        metadata={"help": "Weight of positive examples: 1, or negatives over positives of each factor."},
    )
    max_pos_weight: float = field(default=10.0, metadata={"help": "Largest weight of positive examples."})

    def __post_init__(self):
        self.remove_unused_columns = False  # images are opened when they are needed
        super().__post_init__()

    def check_model(self, config: FactorConfig) -> None:
        """Raises `RecipeError` if a setting that is not left at its default differs from a model that is made."""
        size = getattr(config, "image_processor", {}).get("size", {})
        found = {name: getattr(config, name, None) for name in ("image_size", "enlarge", "head_size")}
        found |= {"head_dropout": config.dropout} | {name: size.get(edge) for name, edge in SIZES.items()}
        for name, of_model in found.items():
            value = getattr(self, name)
            if value in (of_model, type(self).__dataclass_fields__[name].default):
                continue
            if of_model is None:
                raise RecipeError(f"{name}: found {value}, and a {type(config).__name__} has none: leave it out")
            raise RecipeError(f"{name}: found {value}, but the model is made already, with {of_model}")

    def model_settings(self, names: Mapping[str, str]) -> dict[str, Any]:
        """What the recipe says of the predictor's configuration.

        Args:
            names: of the factors, by their ids.
        """
        return {
            "factor_names": dict(names),
            "image_size": self.image_size,
            "enlarge": self.enlarge,
            "head_size": self.head_size,
            "dropout": self.head_dropout,
        }


def evaluation_figures(prediction: EvalPrediction) -> dict[str, float]:
    """Figures while training, at the default thresholds."""
    probabilities = torch.from_numpy(prediction.predictions).float().sigmoid().numpy()
    return factor_metrics(probabilities, prediction.label_ids, np.full(probabilities.shape[1], DEFAULT_THRESHOLD))


def _name_of(model: FactorPredictor | str | Mapping[str, Any]) -> Any:
    """Of the output folder; as it is where it is no model."""
    if model is None or isinstance(model, str | PurePath):
        return model
    return model["model_type"] if isinstance(model, Mapping) else type(model).__name__


# -- the trainer ------------------------------------------------------------------------------------------------------


class FactorTrainer(TrainsSomething, FiniteTraining, CompleteCheckpoints, PublishedRun, transformers.Trainer):
    """`transformers.Trainer` of a factor predictor; when it has trained, it fits the thresholds on the validation data
    and measures the model on the final split.

    Args:
        model: a predictor of `models.factors.predictor`, or its folder or Hub id; or that of an image model or a
            vision-language model, which gets a new head; or the configuration of a new image backbone, with its
            `model_type`.
        args: by default those of `FactorTrainingConfig`.
        train_dataset, eval_dataset: what to learn from, and what to stop and fit thresholds by: data sets with an
            image and `factors`, ids of those that apply, in each row; or `LabelledImages`.
        final_dataset: what to measure the finished model on.
        factors: ids of all factors; by default those of the predictor, or else of the training rows.

    Raises:
        TypeError: another configuration, or no data to learn from or to fit thresholds by.
        ModelError, OSError: the model cannot be loaded.
        RecipeError: settings that contradict the model.
        RecordError: rows that cannot be used.
    """

    _name = "factors"
    report_kind = "factors"

    def __init__(
        self,
        model: FactorPredictor | str | Mapping[str, Any],
        args: transformers.TrainingArguments | None = None,
        train_dataset: LabelledImages | Dataset | None = None,
        eval_dataset: LabelledImages | Dataset | None = None,
        final_dataset: LabelledImages | Dataset | None = None,
        *,
        factors: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        args = config_or_default(args, FactorTrainingConfig, _name_of(model), "Factors")
        if isinstance(model, FactorPredictor):
            factors = factors or model.config.factors
        elif isinstance(model, str):
            factors = factors or stored_factors(model)
        train_data = labelled_images(train_dataset, "train_dataset", factors)
        factors = train_data.factors
        eval_data = labelled_images(eval_dataset, "eval_dataset", factors)
        final_data = None if final_dataset is None else labelled_images(final_dataset, "final_dataset", factors)
        if not isinstance(model, FactorPredictor):
            leave_weights_whole(args, "a factor predictor")
            model = make_predictor(model, args, {factor: factor for factor in factors})
        check_factors(_name_of(model), model, factors)
        args.check_model(model.config)
        weights = positive_weights(train_data.labels, args.max_pos_weight) if args.pos_weight == "balanced" else None
        model.config.pos_weight = weights
        if args.trained_blocks is not None:
            model.freeze_backbone(args.trained_blocks)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        if args.world_size > 1 or args.deepspeed_plugin is not None:
            sync_batch_norms(model)
        callbacks = [*(kwargs.pop("callbacks", None) or ()), *args.early_stopping()]
        super().__init__(
            model,
            args=args,
            data_collator=FactorCollator(model.config),
            train_dataset=train_data,
            eval_dataset=eval_data,
            compute_metrics=evaluation_figures,
            callbacks=[*callbacks, FinishModel(self)],
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the model's loss is the mean over its batch
        self.final_data = final_data
        self.results: dict[str, Any] = {}

    def probabilities(self, data: LabelledImages) -> np.ndarray:
        """(N, factors), gathered from all processes."""
        logits = self.predict(data, metric_key_prefix="final").predictions
        return torch.from_numpy(logits).float().sigmoid().numpy()

    def finish(self) -> None:
        """Fits the thresholds on the validation data, and measures what has been trained."""
        found = self.probabilities(self.eval_dataset)
        config = self.accelerator.unwrap_model(self.model).config
        config.thresholds = fit_thresholds(found, self.eval_dataset.labels)
        thresholds = config.threshold_array()
        self.results = {"thresholds": dict(zip(config.factors, config.thresholds, strict=True))}
        self.results["validation"] = factor_metrics(found, self.eval_dataset.labels, thresholds)
        if self.final_data is not None:
            labels = self.final_data.labels
            majority = np.tile(majority_choice(self.train_dataset.labels), (len(labels), 1))
            self.results["final"] = factor_metrics(self.probabilities(self.final_data), labels, thresholds)
            self.results["majority"] = choice_metrics(majority, labels)
        if self.is_world_process_zero():
            write_json(Path(self.args.output_dir) / RESULTS_FILE, self.results)
        if self.run_info is not None:
            self.run_info.results |= described_results(self.results)


class FinishModel(TrainerCallback):
    """Calls `finish` when training ends and the best model is loaded, before the report is written."""

    def __init__(self, trainer: FactorTrainer):
        self.trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.finish()


def described_results(results: dict[str, Any]) -> dict[str, str]:
    """The figures for a report: label -> text."""
    shown = {"f1_micro": "F1 (micro)", "f1_macro": "F1 (macro)", "map": "mAP", "subset_accuracy": "all factors right"}
    places = {
        "validation": "validation (thresholds fitted here)",
        "final": "held out",
        "majority": "held out, always the most frequent factors",
    }
    return {
        f"{name}, {places[place]}": f"{results[place][key]:.3f}"
        for place in places
        if place in results
        for key, name in shown.items()
        if key in results[place]
    }


# -- the script -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    with readable_errors():
        script, args, model_args, recipe = set_up(
            "factors", (FactorArguments, FactorTrainingConfig, ModelConfig), argv
        )

        # Data
        factors = load_factor_set(script.dataset_name)
        say(f"{len(factors.ids)} factors: {', '.join(factors.ids)}")
        train_data, eval_data, *final_data = load_splits(script, factors, args.seed)
        check_enough_rows(len(train_data), args, script.dataset_name)

        # Model
        leave_weights_whole(args, "a factor predictor")
        model: Any = load_predictor(script, args, model_args, factors)
        splits = {"train": train_data, "evaluation": eval_data, **({"final": final_data[0]} if final_data else {})}
        rows = {name: data.records for name, data in splits.items()}
        start = begin_run("Factors", script, args, model_args, rows)
        if start is None:
            return

        # Trainer
        trainer = FactorTrainer(model, args, train_data, eval_data, *final_data)

        # Train, save, report
        train_and_record(trainer, start, recipe, script.dataset_name, model_args.model_name_or_path or NEW_BACKBONE)
        for label, figure in described_results(trainer.results).items():
            say(f"{label}: {figure}")


if __name__ == "__main__":
    main()
