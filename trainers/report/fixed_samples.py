"""The same few prompts at every sampled step of a run, so that its report shows how answers change.

They are held-out rows where the data has any. Making them changes nothing of the run: no state of a random generator,
no weight, no figure.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from data.io.images import ImageError
from data.io.pixel_bounds import ImageReader
from data.io.records import RecordError
from models.generation import evaluating, generate
from models.shared_prefix.sharing import SharedPrefix
from trainers.report.samples import SampleGroup, SampleLog, Source, right_answers
from trainers.run.console import say, warn
from trainers.setup.evaluation_rows import prompt_content, unseen_rows
from trainers.setup.recipes import DataArguments
from trainers.setup.task_data import load_task_rows

FIXED_PROMPTS = 3
MAX_NEW_TOKENS = 512


@contextmanager
def undisturbed(trainer: Any) -> Iterator[None]:
    """Evaluation without gradients that leaves random generators, and what a model keeps between calls, alone."""
    model, policy = trainer.model, getattr(trainer, "policy", None)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    sharing = [getattr(one, "sharing", None) for one in (policy, *model.modules())]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    kept = [(module, module.rope_deltas) for module in model.modules() if hasattr(module, "rope_deltas")]
    try:
        with ExitStack() as stack:
            for shared in sharing:
                if isinstance(shared, SharedPrefix):
                    stack.enter_context(shared.unchecked())
            for context in (torch.random.fork_rng(devices), torch.no_grad(), evaluating(model)):
                stack.enter_context(context)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        for module, deltas in kept:
            module.rope_deltas = deltas


Samples = dict[Source, list[SampleGroup]]
"""Groups by where their prompts are from."""


def weights_are_spread(trainer: Any) -> bool:
    """Whether no process has all weights, so that none can ask the model by itself."""
    return is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled


class FixedSamples(TrainerCallback):
    """Asks a trainer for its samples at every sampled step, and of the model that is kept at the end.

    Only the main process works; weights that are spread over processes (ZeRO-3, FSDP) cannot be asked by one of them.

    Args:
        trainer: of transformers.
        samples: where they are kept.
        make: the groups at an optimizer step; those of fixed prompts in the same order each time.
    """

    def __init__(self, trainer: Any, samples: SampleLog, make: Callable[[int], Samples]):
        self.trainer = trainer
        self.samples = samples
        self.make = make
        self._works = True

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if weights_are_spread(self.trainer):
            self._works = False
            say("note: the report has no fixed prompts: the weights are spread over the processes")

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if self.samples.is_due(state.global_step, state.max_steps):
            self._add(state, state.global_step)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._add(state, state.global_step)

    def _add(self, state: Any, step: int) -> None:
        if not (self._works and state.is_world_process_zero):
            return
        try:
            with undisturbed(self.trainer):
                made = self.make(step)
        except Exception as error:  # a report is not worth a run
            self._works = False
            warn(f"the report has no fixed prompts from step {step} on: {type(error).__name__}: {error}")
            return
        for source, groups in made.items():
            for number, group in enumerate(groups):
                self.samples.add(step, group, source, number)


# -- which prompts ----------------------------------------------------------------------------------------------------


def chosen(rows: Sequence[Any], seed: int) -> list[Any]:
    """The same few of `rows` for the same seed."""
    return random.Random(seed).sample(list(rows), min(FIXED_PROMPTS, len(rows)))


def held_out_rows(
    script: DataArguments, train_rows: list[dict], eval_rows: list[dict] | None
) -> tuple[list[dict], Source]:
    """Rows to show: those evaluated on, or of the validation split of a local folder, or else training rows."""
    if eval_rows is not None:
        return eval_rows, "held out"
    other = script.dataset_test_split
    if PartialState().is_main_process and Path(script.dataset_name).is_dir() and other != script.dataset_train_split:
        try:
            unseen = unseen_rows(train_rows, load_task_rows(script, other, check_files=False), prompt_content)
        except (RecordError, ImageError):  # no such split, or one that this run does not need to be right
            return train_rows, "training data"
        if unseen:
            return unseen, "held out"
    return train_rows, "training data"


# -- answers of a model -----------------------------------------------------------------------------------------------


def answers_to(trainer: Any, rows: Sequence[dict], bounds: ImageReader, max_new_tokens: int) -> list[str]:
    """The most likely answer to each row's prompt, token by token."""
    images = [[bounds.open(image) for image in row["images"]] for row in rows]
    prompts = [row["prompt"] for row in rows]
    limit = min(max_new_tokens, MAX_NEW_TOKENS)
    model = trainer.accelerator.unwrap_model(trainer.model)
    return [text for (text,) in generate(model, trainer.processing_class, prompts, images, limit)]


def rollout_samples(
    trainer: Any, samples: SampleLog, rows: Sequence[dict], source: Source, bounds: ImageReader
) -> FixedSamples:
    """What a model that is trained on its own answers makes of the same few rows."""
    few = chosen(rows, trainer.args.seed)

    def make(step: int) -> Samples:
        texts = answers_to(trainer, few, bounds, trainer.args.max_completion_length)
        groups = [
            SampleGroup(row["prompt"], row["images"], [text], [{}], answers=right_answers(row))
            for row, text in zip(few, texts, strict=True)
        ]
        return {source: groups}

    return FixedSamples(trainer, samples, make)


def demonstration_samples(
    trainer: Any,
    samples: SampleLog,
    rows: Sequence[dict],
    source: Source,
    train_rows: Sequence[dict],
    bounds: ImageReader,
) -> FixedSamples:
    """What a model that learns demonstrations writes by itself, beside the right answer: to the same few rows, and to
    a training row that is another one at every step."""
    few, seed = chosen(rows, trainer.args.seed), trainer.args.seed
    tokenizer = trainer.processing_class.tokenizer

    def make(step: int) -> Samples:
        shown = [*few, random.Random(f"{seed} {step}").choice(train_rows)]
        targets = [row["completion"][-1]["content"] for row in shown]
        longest = max(len(tokenizer(target)["input_ids"]) for target in targets)
        texts = answers_to(trainer, shown, bounds, 2 * longest)
        groups = [
            SampleGroup(
                prompt=row["prompt"],
                images=row["images"],
                completions=[text],
                scores=[{"token accuracy": _token_accuracy(trainer, row, bounds)}],
                answers={"right": target},
                marks=["right" if text.strip() == target.strip() else "differs"],
            )
            for row, target, text in zip(shown, targets, texts, strict=True)
        ]
        return {source: groups[:-1], "batch": groups[-1:]}

    return FixedSamples(trainer, samples, make)


def _token_accuracy(trainer: Any, row: dict, bounds: ImageReader) -> float:
    """Share of the right answer's tokens that are the most likely ones, each after the right ones before it."""
    images = [bounds.open(image) for image in row["images"]]
    batch = trainer.data_collator([{**row, "images": images}]).to(trainer.model.device)
    labels = batch.pop("labels")[:, 1:]
    likely = trainer.accelerator.unwrap_model(trainer.model)(**batch).logits[:, :-1].argmax(dim=-1)
    counted = labels != -100
    return (likely == labels)[counted].float().mean().item()
