"""One rollout and the batch that the update makes of it: what the sampler saw beside what the loss will see."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from models.families.base import IMAGE_INPUTS, ImageTensors, KnownFamily
from models.families.registry import family_of, known_family_of
from models.families.vision_hooks import has_vision_tower, vision_language_model
from trainers.diagnosis.findings import Finding
from trainers.mixins.rollouts.batch import Batch


@dataclass
class Sampled:
    """One completion, as its sampler knows it. What a sampler does not tell is `None`.

    Attributes:
        prompt_ids: tokens of the prompt, with one for every patch of its images.
        completion_ids: tokens that were sampled, the end token too.
        log_probs: of each of them, in nats, under the distribution that it was drawn from.
        images: what the model was given of each (`Family.split`), or as much of it as is stored.
        text: the completion, where only its text is known and `completion_ids` were made of it.
    """

    completion_ids: list[int]
    prompt_ids: list[int] | None = None
    log_probs: list[float] | None = None
    images: list[ImageTensors] | None = None
    text: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from logits, in the order in which it is applied.

    Attributes:
        suppressed: ids of tokens that are never drawn.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()


class Backend(Protocol):
    """Where completions come from."""

    name: str

    def generate(self, trainer: Any, generate: Callable, prompts: "Prompts", size: int) -> list[Sampled]:
        """Completions of all prompts, in their order.

        Args:
            generate: what the trainer itself would do: `(prompt ids, images, fields, size)` to completions and their
                log-probabilities or `None`.
            size: completions of a prompt, which stands in `prompts` so many times.
        """

    def rows(self, rows: Sequence[dict], limit: int) -> list[dict]:
        """Those of the data set's rows that it has completions of, or may be asked for."""

    def size(self, recipes: int) -> int:
        """Completions of each of them, where the recipe asks for so many."""

    def places(self) -> list[str]:
        """Folders whose weights may have drawn its completions."""

    def step(self) -> int | None:
        """Optimizer steps before its completions, where that is stored."""

    def stale(self) -> bool:
        """Whether it is known that other weights than the model's have drawn them."""

    def findings(self, temperature: float) -> Iterator[Finding]:
        """What it tells by itself, beside the update's temperature."""


@dataclass
class Prompts:
    """What the trainer hands to a sampler.

    Attributes:
        ids: tokens of each.
        images: of each, or `None` if no prompt has any.
        fields: `pixel_values`, `image_grid_thw` and others of the processor, of all prompts.
    """

    ids: list[list[int]]
    images: list | None
    fields: dict[str, Any]

    def images_of_rows(self, config: Any) -> list[list[ImageTensors]]:
        """What the model is given of each prompt's images.

        Args:
            config: of the module that takes pixels and tokens; `None` of a model that takes texts alone.
        """
        counts = [len(of_row or []) for of_row in self.images] if self.images else [0] * len(self.ids)
        tensors = {
            name: value if isinstance(value, torch.Tensor) else torch.as_tensor(np.array(value))  # as TRL does
            for name, value in self.fields.items()
            if name in IMAGE_INPUTS
        }
        return images_of_rows(config, self.ids, tensors, counts)


def images_of_rows(
    config: Any, prompts: Sequence[Sequence[int]], inputs: Mapping[str, Any], counts: Sequence[int] | None
) -> list[list[ImageTensors]]:
    """The images of each row, of those of all rows one after the other.

    Args:
        config: of the module that takes pixels and tokens; `None` where nothing is known of it.
        prompts: tokens of each row.
        counts: pictures of each row, where that is known.

    Raises:
        ValueError: rows have other tokens than images.
    """
    images = known_family_of(config).split(inputs) if config is not None else []
    if not images:
        return [[] for _ in prompts]
    family = known_family_of(config)
    tokens = [image_tokens_in(config, ids) for ids in prompts]
    return [[images[number] for number in row] for row in family.images_of_rows(config, images, tokens, counts)]


def image_tokens_in(config: Any, ids: Sequence[int]) -> int:
    """How many tokens of a prompt stand for images."""
    return int((known_family_of(config).token_types(config, torch.tensor(ids)) == 1).sum())


@dataclass
class Observed:
    """Both sides of one rollout.

    Attributes:
        rows: of the data set, one for each completion.
        sampled: what the sampler saw and drew.
        batch: what the update gets (`trl.GRPOTrainer._generate_and_score_completions`).
        sampling: how the recipe says that tokens are drawn.
        stale: it is known that other weights than the update's have drawn them.
        config: of the module that takes pixels and tokens; `None` of a model that takes texts alone.
    """

    rows: list[dict]
    sampled: list[Sampled]
    batch: Batch
    sampling: Sampling = field(default_factory=Sampling)
    stale: bool = False
    config: Any = None

    def prompt_ids(self, row: int) -> list[int]:
        """Tokens of a row's prompt, as the update has them."""
        return self.batch["prompt_ids"][row][self.batch["prompt_mask"][row].bool()].tolist()

    def counted(self) -> list[int]:
        """Rows that are in the loss: a recipe may leave out completions that were cut."""
        return [row for row in range(len(self.sampled)) if self.batch["completion_mask"][row].any()]

    def images(self) -> list[list[ImageTensors]]:
        """What the update sees of each row's images.

        Raises:
            ValueError: rows have other tokens than images.
        """
        prompts = [self.prompt_ids(row) for row in range(len(self.rows))]
        return images_of_rows(self.config, prompts, self.batch, self.batch.get("num_images"))


def config_of(model: nn.Module) -> Any:
    """That of the module that takes pixels and tokens; `None` of a model that takes texts alone, or of whose family
    nothing is known."""
    config = vision_language_model(model).config if has_vision_tower(model) else None
    return config if config is not None and isinstance(family_of(config), KnownFamily) else None


@contextmanager
def generating(trainer: Any, generate: Callable) -> Iterator[None]:
    """Within it the trainer gets its completions from `generate`."""
    trainer._generate_single_turn = generate
    try:
        yield
    finally:
        del trainer._generate_single_turn


def observe(trainer: Any, backend: Backend, rows: Sequence[dict], sampling: Sampling) -> Observed:
    """Rolls out once, as a training step does, and keeps what both sides see.

    Args:
        rows: of the data set, images opened; each is completed `trainer.num_generations` times.
    """
    original, found = trainer._generate_single_turn, []

    def generate(prompt_ids: list, images: list | None, fields: dict, size: int, **others: Any) -> tuple:
        def as_trainer(ids: list, images: list | None, fields: dict) -> tuple:
            return original(ids, images, fields, size, **others)

        found[:] = backend.generate(trainer, as_trainer, Prompts(prompt_ids, images, fields), size)
        known = [one.log_probs for one in found]
        return [one.completion_ids for one in found], None if None in known else known

    inputs = [row for row in rows for _ in range(trainer.num_generations)]
    trainer.model.train()
    with generating(trainer, generate):
        batch = trainer._roll_out(inputs).batch
    return Observed(inputs, list(found), batch, sampling, backend.stale(), config_of(trainer.model))
