"""Ending a run that no longer gets better, and keeping the best model."""

from dataclasses import dataclass, field
from typing import ClassVar

from transformers import EarlyStoppingCallback, TrainerCallback


@dataclass
class EarlyStoppingArguments:
    """What the recipes of trainers that evaluate say about it. Stands before `transformers.TrainingArguments`."""

    default_best_metric: ClassVar[str] = "eval_accuracy"

    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Evaluations in a row without a better metric_for_best_model after which the run ends."},
    )

    def __post_init__(self):
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
            self.restore_callback_states_from_checkpoint = True  # how many evaluations were without progress so far
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = self.default_best_metric
        super().__post_init__()

    def early_stopping(self) -> list[TrainerCallback]:
        """The callback that ends the run, if the recipe asks for it."""
        return [] if self.early_stopping_patience is None else [EarlyStoppingCallback(self.early_stopping_patience)]
