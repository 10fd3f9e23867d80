"""Factor predictor: a model learns which quality factors apply to an image (multi-label, binary cross-entropy).

    accelerate launch trainers/factors.py --config recipes/factors.yaml

Runs transformers' Trainer on labelled images (data/factors.py). The model is an image backbone or the vision tower of
a Qwen2-VL with a head (models/factors/predictor.py). See docs/factors.md.
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "factors", "FactorArguments", "FactorTrainingConfig", "ModelConfig")

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import EvalPrediction, TrainerCallback
from trl import ModelConfig

from data.factor_labels.clusters import FactorSet
from data.factors import LabelledImage, load_factor_set, load_labelled, multi_hot
from data.io.images import open_image
from data.io.records import RecordError, write_json
from models.errors import ModelError
from models.factors.metrics import choice_metrics, factor_metrics, fit_thresholds, majority_choice
from models.factors.predictor import (
    DEFAULT_THRESHOLD,
    FactorConfig,
    FactorPredictor,
    from_backbone,
    load_factor_predictor,
    new_predictor,
)
from models.factors.synced_batch_norm import sync_batch_norms
from trainers.mixins.checkpoints import CompleteCheckpoints
from trainers.mixins.early_stopping import EarlyStoppingArguments
from trainers.mixins.enough_rows import TrainsSomething, check_enough_rows
from trainers.mixins.finite import FiniteTraining
from trainers.mixins.image_bounds import PixelArguments
from trainers.report.publishing import PublishedRun
from trainers.report.record import RunInfo
from trainers.run.console import say
from trainers.run.machine import command_line
from trainers.run.resuming import begin_run, hold_output
from trainers.run.script import readable_errors, train_and_record
from trainers.setup.checks import check_set_up
from trainers.setup.evaluation_rows import check_apart, evaluation_rows
from trainers.setup.model import hub_arguments
from trainers.setup.own_config import CheckedSettings, own_config
from trainers.setup.recipes import DataArguments, RecipeError, parse_mapping, parse_recipe
from trainers.setup.zero_stage import leave_weights_whole

RESULTS_FILE = "factor_results.json"
NEW_BACKBONE = "a new backbone"


@dataclass
class FactorArguments(DataArguments):
    """The labelled images, and what looks at them."""

    dataset_final_split: str | None = field(
        default="test", metadata={"help": "Split that the finished model is measured on once; null for none."}
    )
    backbone: dict | str | None = field(
        default=None,
        metadata={
            "help": "Configuration of a new image backbone, with its model_type, in place of model_name_or_path "
            "(a published image model or Qwen2-VL, or a factor predictor to train on)."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.backbone = parse_mapping("backbone", self.backbone)
        if isinstance(self.backbone, str):
            raise ValueError(
                f"backbone: expected a mapping with its model_type, found {self.backbone!r}; a stored model is given "
                "by model_name_or_path"
            )


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
        for name, of_model in (("image_size",) * 2, ("enlarge",) * 2, ("head_size",) * 2, ("head_dropout", "dropout")):
            value, found = getattr(self, name), getattr(config, of_model, None)
            if found not in (None, value) and value != type(self).__dataclass_fields__[name].default:
                raise RecipeError(f"{name}: found {value}, but the model is made already, with {found}")

    def model_settings(self, factors: FactorSet) -> dict[str, Any]:
        """What the recipe says of the predictor's configuration."""
        return {
            "factor_names": factors.names,
            "image_size": self.image_size,
            "enlarge": self.enlarge,
            "head_size": self.head_size,
            "dropout": self.head_dropout,
        }


class LabelledImages(torch.utils.data.Dataset):
    """Images with their labels, opened when they are asked for."""

    def __init__(self, records: Sequence[LabelledImage], factors: Sequence[str]):
        self.records = records
        self.labels = multi_hot(records, factors)  # (N, factors)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"image": open_image(self.records[number].image_path), "labels": self.labels[number]}


class FactorCollator:
    """Batches as the model reads them; labels come first, because Trainer takes a batch's size from what does.

    Args:
        config: of the model.
    """

    def __init__(self, config: FactorConfig):
        self.config = config

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.from_numpy(np.stack([example["labels"] for example in examples]))
        return {"labels": labels, **self.config.prepare([example["image"] for example in examples])}


def positive_weights(labels: np.ndarray, largest: float) -> list[float]:
    """Negatives over positives of each factor, from 1 / `largest` to `largest`.

    >>> positive_weights(np.array([[1, 0], [1, 0], [1, 1], [0, 0]]), 2.0)
    [0.5, 2.0]
    """
    positives = labels.sum(axis=0)
    ratios = (len(labels) - positives) / np.maximum(positives, 1)
    return [float(ratio) for ratio in ratios.clip(1 / largest, largest)]


def evaluation_figures(prediction: EvalPrediction) -> dict[str, float]:
    """Figures while training, at the default thresholds."""
    probabilities = torch.from_numpy(prediction.predictions).float().sigmoid().numpy()
    return factor_metrics(probabilities, prediction.label_ids, np.full(probabilities.shape[1], DEFAULT_THRESHOLD))


class FactorTrainer(TrainsSomething, FiniteTraining, CompleteCheckpoints, PublishedRun, transformers.Trainer):
    """`transformers.Trainer` of a factor predictor; when it has trained, it fits the thresholds on the validation data
    and measures the model on the final split.

    Args:
        model: of `models.factors.predictor`.
        train_data, eval_data: what to learn from, and what to stop and fit thresholds by.
        final_data: what to measure the finished model on.
    """

    _name = "factors"

    def __init__(
        self,
        model: FactorPredictor,
        args: FactorTrainingConfig,
        train_data: LabelledImages,
        eval_data: LabelledImages,
        final_data: LabelledImages | None = None,
        **kwargs: Any,
    ):
        args = own_config(args, FactorTrainingConfig)
        args.check_model(model.config)
        weights = positive_weights(train_data.labels, args.max_pos_weight) if args.pos_weight == "balanced" else None
        model.config.pos_weight = weights
        if args.trained_blocks is not None:
            try:
                model.freeze_backbone(args.trained_blocks)
            except ValueError as error:
                raise RecipeError(str(error)) from error
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

    def on_train_end(self, args, state, control, **kwargs) -> None:
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


def load_predictor(
    script: FactorArguments, args: FactorTrainingConfig, model_args: Any, factors: FactorSet
) -> FactorPredictor:
    """The predictor that a recipe names or describes.

    Raises:
        RecipeError: neither or both are given, it cannot be loaded, or it predicts other factors.
    """
    name = model_args.model_name_or_path
    if (name is None) == (script.backbone is None):
        found = "neither" if name is None else "both"
        raise RecipeError(f"expected either model_name_or_path or backbone, found {found}")
    settings = args.model_settings(factors)
    try:
        if name is None:
            return new_predictor(script.backbone, factors.ids, **settings)
        revision = hub_arguments(args, model_args)["revision"]
        config = transformers.AutoConfig.from_pretrained(name, revision=revision)
        if not isinstance(config, FactorConfig):
            return from_backbone(name, factors.ids, args.min_pixels, args.max_pixels, revision, **settings)
        model = load_factor_predictor(name, "cpu", revision).train()
    except (OSError, ValueError) as error:
        where = "backbone" if name is None else f"model_name_or_path: '{name}' cannot be loaded"
        raise RecipeError(f"{where}: {error}") from error
    if model.config.factors != factors.ids:
        raise RecipeError(
            f"model_name_or_path: '{name}' predicts {', '.join(model.config.factors)}; the data set has "
            f"{', '.join(factors.ids)}"
        )
    return model


def memory_estimate(model: FactorPredictor) -> str:
    """What weights, gradients and the optimizer's state take; what a batch takes comes on top."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    gigabytes = (4 * parameters + 12 * trained) / 1e9
    return (
        f"memory estimate: {gigabytes:.2f} GB for {parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them "
        "trained, without a batch's activations"
    )


def _image_content(record: LabelledImage) -> tuple[str, Sequence[Any]]:
    return "", [record.image_path]


def load_splits(script: FactorArguments, factors: FactorSet, seed: int = 0) -> list[LabelledImages]:
    """Training, validation and final data; every image is decoded once, on the main process.

    Args:
        seed: of `eval_share`.

    Raises:
        RecordError: lists every problem of every split.
        RecipeError: images that are trained on are also to be measured on.
    """
    main = PartialState().is_main_process
    places = [(script.dataset_name, script.dataset_train_split)]
    if script.eval_share is None:
        places.append((script.eval_dataset_name or script.dataset_name, script.dataset_test_split))
    if script.dataset_final_split is not None:
        places.append((script.dataset_name, script.dataset_final_split))
    found, errors = {}, []
    for source, split in places:
        try:
            found[source, split] = load_labelled(source, split, factors.ids, check_files=main)
        except RecordError as error:
            errors.append(error)
    if errors:
        raise RecordError.joined(errors)
    train, held_out = evaluation_rows(script, seed, found[places[0]], lambda *place: found[place], _image_content)
    splits = [(script.dataset_train_split, train), (script.dataset_test_split, held_out)]
    if script.dataset_final_split is not None:
        splits.append((script.dataset_final_split, found[places[-1]]))
        check_apart(train, found[places[-1]], _image_content, f"{script.dataset_name}, {script.dataset_final_split}")
    for name, records in splits:
        without = sum(not record.factors for record in records)
        say(f"{name}: {len(records)} images, {without} of them without a factor")
    return [LabelledImages(records, factors.ids) for _, records in splits]


def _is_out_of_reach(error: BaseException | None) -> bool:
    """Whether a model was not found, rather than found to be wrong."""
    cause = error.__cause__ if isinstance(error, ModelError) else error
    return isinstance(cause, OSError)


def main(argv: list[str] | None = None) -> None:
    with readable_errors():
        script, args, model_args, recipe = parse_recipe((FactorArguments, FactorTrainingConfig, ModelConfig), argv)
        check_set_up("factors", script, args, model_args)
        hold_output(script, args)

        # Data
        factors = load_factor_set(script.dataset_name)
        say(f"{len(factors.ids)} factors: {', '.join(factors.ids)}")
        train_data, eval_data, *final_data = load_splits(script, factors, args.seed)
        check_enough_rows(len(train_data), args, script.dataset_name)

        # Model
        leave_weights_whole(args, "a factor predictor")
        torch.manual_seed(args.seed)  # the first weights
        try:
            model = load_predictor(script, args, model_args, factors)
            say(memory_estimate(model))
        except RecipeError as error:
            if not script.validate_only or not _is_out_of_reach(error.__cause__):
                raise
            say(f"memory estimate: not possible, {model_args.model_name_or_path} cannot be reached from here")
        if script.validate_only:
            say("valid")
            return
        splits = {"train": train_data, "evaluation": eval_data, **({"final": final_data[0]} if final_data else {})}
        rows = {name: data.records for name, data in splits.items()}
        start = begin_run("Factors", script, args, model_args, rows)
        if start is None:
            return

        # Trainer
        trainer = FactorTrainer(model, args, train_data, eval_data, *final_data)

        # Train, save, report
        info = RunInfo(
            method="Factors",
            command=command_line(),
            recipe=recipe.text,
            dataset=script.dataset_name,
            base_model=model_args.model_name_or_path or NEW_BACKBONE,
            kind="factors",
        )
        train_and_record(trainer, info, recipe, start)
        for label, figure in described_results(trainer.results).items():
            say(f"{label}: {figure}")


if __name__ == "__main__":
    main()
