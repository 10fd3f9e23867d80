"""How far the probabilities that rollouts were sampled with lie from those that the trainer learns by.

An update is right where both are the same distribution. An engine of another precision, pictures that it does not get
or resizes otherwise, another chat template, weights that it was not handed, dropout: each shows as a difference
between the two log-probabilities of the same sampled token. It is measured before the first update on a token; later
ones are expected to part from it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import GenerationMode

from data.errors import UserError
from models.decoding.engine import generating_by
from models.decoding.sampled_log_probs import SampledLogProbs
from trainers.mixins.rollouts.batch import Batch
from trainers.run.console import warn
from trainers.setup.recipes import RecipeError

STEPS_IN_A_ROW = 3
"""Above the limit: one batch of rare tokens is no finding."""
GROSS = 10.0
"""Times the limit: the first step is enough."""
NEUTRAL: dict[str, tuple] = {
    "top_p": (None, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "typical_p": (None, 1.0),
    "top_h": (None,),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "frequency_penalty": (None, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "do_sample": (None, True),
    "num_beams": (None, 1),
    "min_new_tokens": (None, 0),
    "min_tokens": (None, 0),
    "min_length": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "sequence_bias": (None,),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None,),
    "forced_eos_token_id": (None,),
    "structured_outputs": (None,),
    "vllm_structured_outputs_regex": (None,),
}
"""Options of generation that sample from another distribution than the model's at its temperature, and the values
that leave it as it is."""

_SAMPLED = "sampling_per_token_logps"
"""TRL's key for what the sampler said."""


@dataclass
class SamplingDifferenceArguments:
    """What recipes of GRPO say about the sampler's and the trainer's log-probabilities. Stands before
    `trl.GRPOConfig`.

    The default limit lies above what sound runs show: two engines with the same weights in half precision differ by
    about 0.01 nats a token, more where the policy is less sure (6% of tokens by more than a tenth: huggingface/trl,
    pull request 7269). NVIDIA's NeMo RL asks of its runs that the two probabilities differ by a factor below 1.05 or
    1.1 in the mean: 0.05 or 0.1 nats. A cut at `top_p: 0.95` takes 0.05 at most.
    """

    max_sampling_difference: float | None = field(
        default=0.1,
        metadata={
            "help": "Largest difference between the log-probabilities of sampler and trainer, in nats a token, mean "
            "of a step: 3 steps in a row above it, or one above 10 times it, stop the run; null or 0: none."
        },
    )


class SamplingDifferenceError(UserError):
    """The rollouts are sampled from another distribution than the trainer learns by."""


def changed_sampling(args: Any) -> dict[str, Any]:
    """Settings under which completions are sampled from another distribution than the trainer's.

    Args:
        args: a `trl.GRPOConfig`; its `generation_kwargs` count before its own fields, as they do in TRL.

    >>> from types import SimpleNamespace
    >>> changed_sampling(SimpleNamespace(temperature=1.0, top_p=0.9, top_k=0, generation_kwargs={"min_p": 0.1}))
    {'top_p': 0.9, 'min_p': 0.1}
    """
    neutral = NEUTRAL | {"temperature": (None, args.temperature)}
    given = {name: getattr(args, name, None) for name in neutral} | (args.generation_kwargs or {})
    return {name: given[name] for name in neutral if given[name] not in neutral[name]}


def sampling_problem(args: Any) -> str | None:
    """What `changed_sampling` does to a run; `None` where nothing is changed."""
    changed = changed_sampling(args)
    if not changed:
        return None
    shown = ", ".join(f"{name}: {value}" for name, value in changed.items())
    if corrects_ratios(args):
        return (
            f"{shown}: vLLM gives log-probabilities of the distribution that it samples from, the trainer those of "
            "the whole one: each importance ratio is wrong by the share that was kept, and one of a whole completion "
            "by the product over its tokens; leave it out (docs/grpo.md, Sampling and learning)"
        )
    return (
        f"{shown}: completions are sampled from another distribution than the one that is trained; without it they "
        "are the same (docs/grpo.md, Sampling and learning)"
    )


def check_sampling(args: Any, only_checked: bool) -> None:
    """Raises `RecipeError` where importance ratios would be wrong by what is cut off.

    Args:
        only_checked: no run follows; then what is no error is warned of here, and otherwise by the trainer.
    """
    problem = sampling_problem(args)
    if problem is not None and corrects_ratios(args):
        raise RecipeError(problem)
    if problem is not None and only_checked and PartialState().is_main_process:
        warn(problem)


def corrects_ratios(args: Any) -> bool:
    """Whether the loss is weighted by the ratio of the trainer's and the sampler's probabilities."""
    return bool(args.use_vllm and args.vllm_importance_sampling_correction)


# -- what transformers samples with -----------------------------------------------------------------------------------


KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache", "cache_implementation")
"""What a model's own generation configuration says that is no matter of sampling."""


@contextmanager
def without_own_sampling(model: nn.Module) -> Iterator[None]:
    """Within it `model.generate` is given nothing by the model's generation_config.json that changes what is drawn.

    `generate` takes from there whatever the configuration that it is handed leaves open, such as `min_p`, of which the
    update knows nothing.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    kept = {name: getattr(own, name, None) for name in KEPT}
    base.generation_config = GenerationConfig(**{name: value for name, value in kept.items() if value is not None})
    try:
        yield
    finally:
        base.generation_config = own


@contextmanager
def noting_log_probs(model: nn.Module, noted: SampledLogProbs) -> Iterator[None]:
    """Lets the next call of `model.generate` note what it samples with."""

    def generate_and_note(generate: Callable, *args: Any, **kwargs: Any) -> Any:
        processors = LogitsProcessorList([*(kwargs.pop("logits_processor", None) or []), noted])
        return generate(*args, logits_processor=processors, **kwargs)

    with generating_by(model, generate_and_note):
        yield


# -- the trainer ------------------------------------------------------------------------------------------------------


@dataclass
class Differences:
    """Of the tokens of one optimizer step, on one process.

    Attributes:
        total, tokens, largest: sum, number and maximum of the absolute differences.
    """

    total: float = 0.0
    tokens: int = 0
    largest: float = 0.0

    def add(self, differences: torch.Tensor) -> None:
        self.total += differences.sum().item()
        self.tokens += differences.numel()
        self.largest = max(self.largest, differences.max().item() if differences.numel() else 0.0)


class SamplingDifference:
    """The part of a `trl.GRPOTrainer` that compares the log-probabilities of sampler and trainer, and stops all
    processes where they are of two distributions.

    Compared are the tokens that a step trains on, at the weights that they were sampled with: before the first update
    after their rollout, or by the log-probabilities that were stored then. Tool results, padding, completions that are
    masked for their length and tokens that an engine could not score are left out; the end token is counted.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._differences = Differences()
        self._steps_above = 0
        self._rollout_step = -1  # optimizer steps before the last rollout
        self._learned: torch.Tensor | None = None  # log-probabilities of the loss that is being computed
        problem = sampling_problem(self.args)
        if problem is not None and self.accelerator.is_main_process:
            warnings.warn(problem, stacklevel=2)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        if self.model.training:
            self._rollout_step = self.state.global_step
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple:
        """The parent's, with the log-probabilities that transformers sampled with, which the parent leaves out."""
        if self.use_vllm:
            return super()._generate_single_turn(*args, **kwargs)
        sampler = self.accelerator.unwrap_model(self.model_wrapped)
        if not self.model.training or not self._samples_plainly():
            with without_own_sampling(sampler):
                return super()._generate_single_turn(*args, **kwargs)
        noted = SampledLogProbs(self.generation_config.temperature)
        with without_own_sampling(sampler), noting_log_probs(sampler, noted):
            completion_ids, _ = super()._generate_single_turn(*args, **kwargs)
        return completion_ids, noted.of_completions(completion_ids)

    def _samples_plainly(self) -> bool:
        """Whether `generate` draws one token a row after the other."""
        by_batches = self.use_transformers_continuous_batching
        return not by_batches and self.generation_config.get_generation_mode() == GenerationMode.SAMPLE

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._learned = found[0].detach()
        return found

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> torch.Tensor:
        """The parent's, which sees of transformers' rollouts what it sees in TRL."""
        sampled = inputs.get(_SAMPLED)
        if not self.use_vllm:
            inputs = {key: value for key, value in inputs.items() if key != _SAMPLED}
        self._learned = None
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            if sampled is not None and self._is_first_use():
                self._compare(sampled, inputs)
            if self.accelerator.sync_gradients:
                self._judge_step()
        return loss

    def _is_first_use(self) -> bool:
        """Whether this micro-batch is trained on for the first time."""
        steps = self.args.steps_per_generation
        return self._step % (steps * self.num_iterations) < steps

    def _compare(self, sampled: torch.Tensor, inputs: Batch) -> None:
        learned = inputs.get("old_per_token_logps")
        if learned is None and self._rollout_step == self.state.global_step:
            learned = self._learned
        if learned is None:  # the weights have changed, or a fused loss made none
            return
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        found = (learned - sampled)[mask].abs()
        self._differences.add(found[~found.isnan()])  # NaN of the trainer's is an error of its own

    def _judge_step(self) -> None:
        """Logs the differences of the step that is complete, and looks at the limit.

        Raises:
            SamplingDifferenceError: on every process.
        """
        mine, self._differences = self._differences, Differences()
        sums = torch.tensor([[mine.total, mine.tokens, mine.largest]], device=self.accelerator.device)
        of_all = self.accelerator.gather(sums)  # (processes, 3)
        total, tokens = of_all[:, 0].sum().item(), of_all[:, 1].sum().item()
        if not tokens:
            return
        mean, largest = total / tokens, of_all[:, 2].max().item()
        if not corrects_ratios(self.args):  # there the parent logs them
            metrics = self._metrics["train"]
            metrics["sampling/sampling_logp_difference/mean"].append(mean)
            metrics["sampling/sampling_logp_difference/max"].append(largest)
        limit = self.args.max_sampling_difference
        if not limit:
            return
        self._steps_above = self._steps_above + 1 if mean > limit else 0
        if self._steps_above >= STEPS_IN_A_ROW or mean > GROSS * limit:
            raise SamplingDifferenceError(self._message(mean, largest, limit))

    def _message(self, mean: float, largest: float, limit: float) -> str:
        steps = f", {self._steps_above} steps in a row" if self._steps_above > 1 else ""
        return (
            f"step {self.state.global_step + 1}: the log-probabilities of the sampled tokens by the sampler and by "
            f"the trainer differ by {mean:.3g} nats a token (mean; largest {largest:.3g}){steps}; expected at most "
            f"max_sampling_difference ({limit:g}): the run would train on another distribution than it samples from. "
            f"Likely causes: {'; '.join(self._likely_causes())}. `vlm-posttrain doctor --config RECIPE` finds which; "
            "max_sampling_difference: null trains all the same. Nothing of this step was saved"
        )

    def _likely_causes(self) -> list[str]:
        args = self.args
        causes = [f"{name}: {value}" for name, value in changed_sampling(args).items()]
        adapters = getattr(self.accelerator.unwrap_model(self.model), "peft_config", {})
        dropout = max((getattr(one, "lora_dropout", 0.0) for one in adapters.values()), default=0.0)
        if dropout:
            causes.append(f"lora_dropout: {dropout:g}, which is drawn anew in each pass (disable_dropout: true)")
        if args.use_vllm:
            return [
                *causes,
                "images that the engine does not get or resizes otherwise (min_pixels, max_pixels)",
                "an engine of another precision or quantised",
                "another chat template or model at the server",
                "weights that did not reach the engine",
            ]
        return [
            *causes,
            "dropout of the model (disable_dropout: true)",
            "half precision",
            "a forward pass that a plug-in or adapter changes",
        ]

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def sampling_state(self) -> dict[str, Any]:
        """For a checkpoint: how long the differences have been above the limit."""
        return {"steps_above_sampling_limit": self._steps_above}

    def load_sampling_state(self, state: dict[str, Any]) -> None:
        """Restores what `sampling_state` returned; earlier checkpoints have nothing of it."""
        self._steps_above = state.get("steps_above_sampling_limit", 0)
