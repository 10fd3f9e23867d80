"""One rollout and the batch that the update makes of it: what the sampler saw beside what the loss will see."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from trainers.diagnosis.findings import Finding
from trainers.mixins.rollout_batch import Batch


@dataclass
class Sampled:
    """One completion, as its sampler knows it. What a sampler does not tell is `None`.

    Attributes:
        prompt_ids: tokens of the prompt, with one for every patch of its images.
        completion_ids: tokens that were sampled, the end token too.
        log_probs: of each of them, in nats, under the distribution that it was drawn from.
        grids: (time, height, width) in patches, of each image.
        pixels: (patches, values) of all images of the prompt.
        text: the completion, where only its text is known and `completion_ids` were made of it.
    """

    completion_ids: list[int]
    prompt_ids: list[int] | None = None
    log_probs: list[float] | None = None
    grids: list[tuple[int, ...]] | None = None
    pixels: torch.Tensor | None = None
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

    def images_of_rows(self) -> list[tuple[list[tuple[int, ...]], torch.Tensor | None]]:
        """Grids and pixels of each prompt."""
        grids, pixels = self.fields.get("image_grid_thw"), self.fields.get("pixel_values")
        counts = [len(of_row or []) for of_row in self.images] if self.images else [0] * len(self.ids)
        return list(split_images(counts, grids, pixels))


def split_images(
    counts: Sequence[int], grids: torch.Tensor | None, pixels: torch.Tensor | None
) -> Iterator[tuple[list[tuple[int, ...]], torch.Tensor | None]]:
    """Grids and pixels of each row, of those of all rows one after the other."""
    image = patch = 0
    for count in counts:
        if grids is None or pixels is None or count == 0:
            yield [], None
            continue
        own = torch.as_tensor(grids)[image : image + count]
        patches = int(own.prod(dim=1).sum())
        yield [tuple(one) for one in own.tolist()], torch.as_tensor(pixels)[patch : patch + patches]
        image, patch = image + count, patch + patches


@dataclass
class Observed:
    """Both sides of one rollout.

    Attributes:
        rows: of the data set, one for each completion.
        sampled: what the sampler saw and drew.
        batch: what the update gets (`trl.GRPOTrainer._generate_and_score_completions`).
        sampling: how the recipe says that tokens are drawn.
        stale: it is known that other weights than the update's have drawn them.
    """

    rows: list[dict]
    sampled: list[Sampled]
    batch: Batch
    sampling: Sampling = field(default_factory=Sampling)
    stale: bool = False

    def prompt_ids(self, row: int) -> list[int]:
        """Tokens of a row's prompt, as the update has them."""
        return self.batch["prompt_ids"][row][self.batch["prompt_mask"][row].bool()].tolist()

    def counted(self) -> list[int]:
        """Rows that are in the loss: a recipe may leave out completions that were cut."""
        return [row for row in range(len(self.sampled)) if self.batch["completion_mask"][row].any()]

    def images(self) -> list[tuple[list[tuple[int, ...]], torch.Tensor | None]]:
        """Grids and pixels of each row, as the update has them."""
        counts = self.batch.get("num_images") or [0] * len(self.sampled)
        return list(split_images(counts, self.batch.get("image_grid_thw"), self.batch.get("pixel_values")))


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
    return Observed(inputs, list(found), batch, sampling, backend.stale())
