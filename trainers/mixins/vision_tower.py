"""How trainers treat the vision tower of their model, and adapters that TRL would train in bfloat16."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from models.families.adapters import adapter_values, keep_adapters_in_float32
from models.families.vision_hooks import has_vision_tower, install_vision_hooks, keeps_towers_busy, vision_tower


@dataclass
class VisionTowerArguments:
    """What recipes say about the vision tower."""

    freeze_vision_tower: bool = field(default=False, metadata={"help": "Train everything but the vision tower."})


class TrainsVisionTower:
    """Trainer mix-in, last before the library's trainer: batches may lack images, on all or some processes; the tower
    is left as it is if `args.freeze_vision_tower` says so; adapters of a quantised model are trained in float32.

    Args:
        model, others: of the library's trainer.

    Raises:
        ValueError: a tower is to be frozen, and the model has none.
    """

    def __init__(self, model: Any, *others: Any, **kwargs: Any):
        trained_before = adapter_values(model)
        given = next((one for one in (*others, *kwargs.values()) if isinstance(one, TrainingArguments)), None)
        asked = given is not None and given.ddp_find_unused_parameters is not None
        super().__init__(model, *others, **kwargs)
        keep_adapters_in_float32(self.model, trained_before)
        if has_vision_tower(self.model):
            if not asked and keeps_towers_busy(self.model):  # the parent may have said True
                self.args.ddp_find_unused_parameters = False  # every process uses the tower
            self.mix_with_rows_of_text(self.accelerator.num_processes > 1)
            if self.args.freeze_vision_tower:
                vision_tower(self.model).requires_grad_(False)
        elif self.args.freeze_vision_tower:
            raise ValueError(f"freeze_vision_tower: {type(self.model).__name__} reads texts only, and has none")

    def mix_with_rows_of_text(self, distributed: bool) -> None:
        """Lets rows with and without images mix.

        Args:
            distributed: also between processes, which are to use the same modules.
        """
        for model in (self.model, getattr(self, "ref_model", None)):
            if model is not None:
                install_vision_hooks(model, distributed)
