"""Labelled images as the factor trainer reads them: checked records, batches, and how much positive examples weigh."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset

from data.factor_labels.clusters import FactorSet
from data.factors import LabelledImage, load_labelled, multi_hot
from data.io.images import open_image
from data.io.records import GivenRows, RecordError
from models.factors.model import FactorConfig
from trainers.run.console import say
from trainers.setup.evaluation_rows import check_apart, evaluation_rows
from trainers.setup.recipes import DataArguments, parse_mapping


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
            "(a published image model or vision-language model, or a factor predictor to train on)."
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


class LabelledImages(torch.utils.data.Dataset):
    """Images with their labels, opened when they are asked for."""

    def __init__(self, records: Sequence[LabelledImage], factors: Sequence[str]):
        self.records = records
        self.factors = list(factors)
        self.labels = multi_hot(records, factors)  # (N, factors)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"image": open_image(self.records[number].image_path), "labels": self.labels[number]}


def labelled_images(
    dataset: LabelledImages | Dataset | None, name: str, factors: Sequence[str] | None
) -> LabelledImages:
    """The images themselves, or those of a data set's rows, each of which is decoded once, on the main process.

    Args:
        name: of the data set, for messages.
        factors: the ids that exist; by default all that some row has.

    Raises:
        TypeError: no data set.
        RecordError: lists every problem of every row.
    """
    if isinstance(dataset, LabelledImages):
        return dataset
    if not isinstance(dataset, Dataset):
        raise TypeError(f"{name}: expected a data set with images and their factors, found {dataset!r:.80}")
    if factors is None:
        listed = dataset["factors"] if "factors" in dataset.column_names else []
        factors = sorted({factor for of_row in listed for factor in of_row or ()})
    checks = PartialState().is_main_process
    return LabelledImages(load_labelled(GivenRows(name, dataset), "train", factors, checks), factors)


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


# -- of a recipe ------------------------------------------------------------------------------------------------------


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
