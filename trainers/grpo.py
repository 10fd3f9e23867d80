"""GRPO: a model answers each prompt several times, and learns from which answers its rewards prefer.

    vlm-posttrain grpo --config agent_selection
    accelerate launch trainers/grpo.py --config recipes/agent_selection.yaml

Runs TRL's own loop; what is added is listed in `GRPOConfig`. See docs/agent_selection.md.
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "GRPO", "GRPOScriptArguments", "GRPOConfig", "ModelConfig")

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import trl
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import ModelConfig

from models.families.loading import image_reader, image_token_ids, image_tokens, without_router_losses
from rewards.registry import build_rewards, check_there
from rewards.scoring.columns import check_columns
from trainers.mixins.adaptive_kl import AdaptiveKL, AdaptiveKLArguments
from trainers.mixins.advantages import AdvantageArguments, GroupAdvantages
from trainers.mixins.checkpoints import CompleteCheckpoints, metrics_state, restored_metrics
from trainers.mixins.dynamic_sampling import DynamicSampling, DynamicSamplingArguments, Rollout, without_contrast
from trainers.mixins.enough_rows import TrainsSomething, check_enough_rows
from trainers.mixins.image_bounds import PromptArguments, processor_of
from trainers.mixins.non_finite import FiniteTraining
from trainers.mixins.reward_failures import GuardedRewards, load_reward
from trainers.mixins.rollouts.batch import Batch, rows_in, with_rows_as_images
from trainers.mixins.rollouts.engine import LoopedRollouts, RolloutEngineArguments
from trainers.mixins.rollouts.order import OrderedRollouts, RolloutOrderArguments
from trainers.mixins.rollouts.temperature import ScheduledTemperature, TemperatureArguments
from trainers.mixins.sampling_difference import SamplingDifference, SamplingDifferenceArguments, check_sampling
from trainers.mixins.shared_prompts import SharedLogProbs, SharingArguments
from trainers.mixins.vision_tower import TrainsVisionTower, VisionTowerArguments
from trainers.report.fixed_samples import FixedSamples, chosen, held_out_rows, rollout_samples
from trainers.report.publishing import PublishedRun
from trainers.report.sampled_tokens import tokens_of_first_group
from trainers.report.samples import SampleGroup, SampleLog, Source, right_answers
from trainers.run.resuming import begin_run
from trainers.run.script import describe_rewards, load_rows_and_held_out, readable_errors, set_up, train_and_record
from trainers.setup.default_config import CheckedSettings, config_or_default
from trainers.setup.memory import MemoryDemand, base_load, say_estimate
from trainers.setup.model import class_of_its_revision, policy_arguments
from trainers.setup.model_settings import check_image_inputs, checked_model
from trainers.setup.recipes import DataArguments, parse_entries
from trainers.setup.task_data import TokenCounts, rollout_dataset, to_dataset
from trainers.vllm_engine.arguments import VLLMArguments
from trainers.vllm_engine.checks import check_vllm, check_vllm_model
from trainers.vllm_engine.engine import vllm_load
from trainers.vllm_engine.rollouts import VLLMRollouts

_LISTS = {"padding": False, "return_tensors": None}
_OTHER_TEXTS = ("completion", "chosen", "rejected", "messages")
"""Columns of other trainers, which rewards may read. TRL asks any one of those that a row with images has whether it
is a conversation, a set's order deciding which; so it sees the prompt alone until the rewards are called."""


@dataclass
class GRPOConfig(
    CheckedSettings,
    PromptArguments,
    SharingArguments,
    VisionTowerArguments,
    AdvantageArguments,
    DynamicSamplingArguments,
    RolloutOrderArguments,
    TemperatureArguments,
    AdaptiveKLArguments,
    SamplingDifferenceArguments,
    RolloutEngineArguments,
    VLLMArguments,
    trl.GRPOConfig,
):
    """`trl.GRPOConfig` with additions; of their defaults only two differ from TRL: advantages are clipped, and a run
    stops where sampling and update disagree (`max_sampling_difference`)."""

    def __post_init__(self):
        self.scale_rewards = {True: "group", False: "none"}.get(self.scale_rewards, self.scale_rewards)  # as TRL does
        super().__post_init__()


class GRPOTrainer(
    SamplingDifference,
    LoopedRollouts,
    SharedLogProbs,
    DynamicSampling,
    GuardedRewards,
    GroupAdvantages,
    AdaptiveKL,
    ScheduledTemperature,
    OrderedRollouts,
    VLLMRollouts,
    TrainsSomething,
    FiniteTraining,
    CompleteCheckpoints,
    PublishedRun,
    TrainsVisionTower,
    trl.GRPOTrainer,
):
    """`trl.GRPOTrainer`, changed by mix-ins of `trainers/mixins`, each in few of its methods:

    | mix-in | changed method | what differs |
    |---|---|---|
    | `SamplingDifference` | `_generate_single_turn`, `_compute_loss`, .. | sampling another policy is an error |
    | `LoopedRollouts` | `_generate_single_turn` | rows that end leave, a prompt's keys stand once |
    | `SharedLogProbs` | `_get_per_token_logps_and_entropies` | prompts are read once |
    | `DynamicSampling` | none, see below | groups whose rewards are all equal are replaced by other groups |
    | `GuardedRewards` | `_calculate_rewards` | a reward that fails stops all processes, or the row goes without |
    | `GroupAdvantages` | `_compute_loss` | rows without a reward, or that a curriculum leaves out, leave the loss |
    | `AdaptiveKL` | none, see below | `beta` follows the KL |
    | `ScheduledTemperature` | none, see below | the temperature of rollouts and log-probabilities moves |
    | `OrderedRollouts` | `_prepare_inputs`, `_get_train_sampler` | groups stay together, an epoch says the order |
    | `VLLMRollouts` | `__init__` | vLLM has the trainer's precision and image sizes, and reads the same prompts |
    | `TrainsSomething` | `train`, `get_train_dataloader` | too few rows for one step are an error |
    | `FiniteTraining` | `training_step`, `_get_grad_norm`, `evaluate`, `save_model` | NaN and infinity are errors |
    | `CompleteCheckpoints` | `_save_checkpoint`, `_load_from_checkpoint`, .. | a killed run goes on as it was |
    | `PublishedRun` | `push_to_hub`, `create_model_card`, .. | a report and a model card are left |
    | `TrainsVisionTower` | `__init__` | rows with and without images mix; the tower can be frozen |

    This class itself changes `_generate_and_score_completions`, which calls them in turn, `_generate`, which lets rows
    without images stand beside some, `_tokenize_prompts`, which leaves padding out of prompts, and `_compute_loss`,
    after which `beta` and temperature follow the KL.

    Args:
        model, train_dataset, ...: see `trl.GRPOTrainer`, whose order is the same; `docs/grpo.md` lists what differs.
        reward_funcs: any functions `reward(completions, **columns)`; `rewards.registry.build_rewards` makes guarded
            ones from a recipe, others are guarded with `on_error="raise"`.
        args: a `GRPOConfig`; of a `trl.GRPOConfig` the additions have their defaults. Its `model_init_kwargs` say at
            which revision reference and processor are loaded, also those of a model that is loaded already.
        samples: where groups are stored for the run's report; by default nowhere.
    """

    _name = "GRPO"
    log_multimodal: bool
    chat_template_kwargs: dict[str, Any]
    _rewards_per_func: torch.Tensor  # (N, R) of all processes, NaN where None

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: str | Callable | Sequence[str | Callable] | None = None,
        args: trl.GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        *others: Any,
        samples: SampleLog | None = None,
        **kwargs: Any,
    ):
        args = config_or_default(args, GRPOConfig, model, "GRPO")
        processing_class = processor_of(model, args, processing_class)
        args.generation_kwargs = self._without_vision_tokens(args, processing_class)
        given = [] if reward_funcs is None else reward_funcs
        rewards = [load_reward(one, args) for one in (given if isinstance(given, list | tuple) else [given])]
        limit = args.max_prompt_length
        environments = kwargs.get("environment_factory") is not None
        train_dataset = rollout_dataset(train_dataset, "train_dataset", processing_class, limit, environments)
        eval_dataset = rollout_dataset(eval_dataset, "eval_dataset", processing_class, limit, environments)
        with class_of_its_revision(model, args):
            super().__init__(model, rewards, args, train_dataset, eval_dataset, processing_class, *others, **kwargs)
        for one in (self.model, self.ref_model):
            if one is not None:
                without_router_losses(self.accelerator.unwrap_model(one))  # the parent asks for them itself
        self._suppress_image_token()
        self.samples = samples
        self._held_back: list[dict[str, Any]] = []  # columns of each local row that only the rewards see

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The parent's; rows that are given only now get their prompts, and their images are read as all others."""
        if not isinstance(eval_dataset, str | None):
            limit = self.args.max_prompt_length
            environments = self.environment_factories is not None
            eval_dataset = rollout_dataset(eval_dataset, "eval_dataset", self.processing_class, limit, environments)
        return super().get_eval_dataloader(eval_dataset)

    def fixed_samples(self) -> FixedSamples | None:
        """Answers to the same few rows at every sampled step; `None` where prompts are no chat messages."""
        dataset = self.train_dataset if self.eval_dataset is None else self.eval_dataset
        if not (isinstance(self.processing_class, ProcessorMixin) and isinstance(dataset, Dataset)):
            return None
        rows = [dataset[place] for place in chosen(range(len(dataset)), self.args.seed)]
        if any(isinstance(row["prompt"], str) for row in rows):
            return None
        rows = [{**row, "images": row.get("images") or [row["image"]] * ("image" in row)} for row in rows]
        source: Source = "training data" if self.eval_dataset is None else "held out"
        return rollout_samples(self, self.kept_samples, rows, source, image_reader(self.processing_class))

    def described_rewards(self) -> list[str]:
        weights = self.reward_weights.tolist()
        return [f"{name} x {weight:g}" for name, weight in zip(self.reward_func_names, weights, strict=True)]

    @staticmethod
    def _without_vision_tokens(args: GRPOConfig, processing_class: Any) -> dict[str, Any] | None:
        """Generation options under which no token that stands for a picture can be sampled."""
        if not isinstance(processing_class, ProcessorMixin):
            return args.generation_kwargs
        options = dict(args.generation_kwargs or {})
        if args.use_vllm:
            options["bad_words"] = [*options.get("bad_words", []), *image_tokens(processing_class)]
        else:
            suppressed = set(options.get("suppress_tokens") or []) | set(image_token_ids(processing_class))
            options["suppress_tokens"] = sorted(suppressed)
        return options

    def _suppress_image_token(self) -> None:
        """Adds what the parent suppresses only where `generation_kwargs` suppress nothing."""
        image_token = getattr(self.model.config, "image_token_id", None)
        if image_token is not None and not self.use_vllm and isinstance(self.processing_class, ProcessorMixin):
            suppressed = sorted({*self.generation_config.suppress_tokens, image_token})
            self.generation_config.suppress_tokens = self.generation_kwargs["suppress_tokens"] = suppressed

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        """The parent's; then groups without contrast are drawn anew, and advantages and masks are this trainer's."""
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._set_temperature()
        rollout = self._roll_out(inputs)
        flat = without_contrast(self._compared(rollout.rewards))
        self._metrics[mode]["frac_reward_zero_std"][-1] = flat.float().mean().item()
        self._relog_advantages(rollout.rewards)
        if mode == "train" and self.args.dynamic_sampling_rounds:
            rollout = self._draw_until_contrast(rollout)
        self._finish(rollout, mode)
        if mode == "train":
            self._store_sample(rollout)
            self._place_groups(rollout.batch)
        return rollout.batch

    def _roll_out(self, inputs: list[dict[str, Any]]) -> Rollout:
        """One round of the parent's generation and scoring."""
        logs_images, self.log_multimodal = self.log_multimodal, False
        with_images = "images" in inputs[0] or "image" in inputs[0]
        held_back = _OTHER_TEXTS if with_images else ()
        self._held_back = [{name: row[name] for name in held_back if name in row} for row in inputs]
        shown = [{name: value for name, value in row.items() if name not in held_back} for row in inputs]
        if any("image" in row and row["image"] is None for row in shown):  # no processor takes None beside images
            shown = [{"images": [] if row["image"] is None else [row["image"]]} | row for row in shown]
        try:
            batch = super()._generate_and_score_completions(shown)
        finally:
            self.log_multimodal = logs_images
        if logs_images and with_images:
            self._log_images(inputs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        return Rollout(inputs, with_rows_as_images(batch), self._rewards_per_func.unflatten(0, (-1, size)))

    def _generate(self, prompts: list) -> tuple:
        """The parent's, with no images given as an empty list: the processor cannot take `None` beside images."""
        *generated, images, tool_images = super()._generate(prompts)
        images = None if images is None else [of_row or [] for of_row in images]
        return *generated, images, tool_images

    def _tokenize_prompts(self, prompts: list) -> tuple:
        """The parent's, without padding, which it would take for the beginning of the prompt: the processors of some
        families (Gemma 4, Aya Vision) pad unless they are told, and of others (Mistral 3) make one tensor of all
        prompts, which are of different lengths."""
        if not isinstance(self.processing_class, ProcessorMixin):
            return super()._tokenize_prompts(prompts)
        if isinstance(prompts[0], str):
            return self.processing_class(text=prompts, text_kwargs=_LISTS)["input_ids"], None, {}
        given = self.chat_template_kwargs
        of_processor = {**given.get("processor_kwargs", {}), "padding": False}
        self.chat_template_kwargs = {**given, "return_tensors": None, "processor_kwargs": of_processor}
        try:
            return super()._tokenize_prompts(prompts)
        finally:
            self.chat_template_kwargs = given

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """The parent's, of all columns; it stays at hand, since the batch has no room for it."""
        inputs = [{**row, **kept} for row, kept in zip(inputs, self._held_back, strict=True)]
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_per_func

    def _log_images(self, inputs: list[dict[str, Any]]) -> None:
        """As the parent logs them, but on every process: a process without images would leave the others waiting."""
        images = [row.get("images") or ([row["image"]] if row.get("image") is not None else []) for row in inputs]
        self._logs["images"].extend(gather_object(images))

    def _store_sample(self, rollout: Rollout) -> None:
        """Keeps the first group for the report, now and then."""
        if self.samples is None or not self.accelerator.is_main_process:
            return
        if not self.samples.wants(self.state.global_step, self.state.max_steps):
            return
        batch, row = rollout.batch, rollout.inputs[0]
        rows = min(self.num_generations, rows_in(batch))
        texts = self.processing_class.batch_decode(batch["completion_ids"][:rows], skip_special_tokens=True)
        scores = [
            {
                name: None if value != value else value
                for name, value in zip(self.reward_func_names, values, strict=True)
            }
            for values in rollout.rewards[0, :rows].tolist()
        ]
        advantages = batch["advantages"][:rows].tolist()
        group = SampleGroup(
            row["prompt"],
            row.get("images") or [],
            texts,
            scores,
            advantages,
            answers=right_answers(row),
            tokens=tokens_of_first_group(batch, rows, row.get("id")),
        )
        self.samples.add(self.state.global_step, group)

    # -- loss and schedules ------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        """The parent's; then beta and temperature follow the KL, which a micro-batch of rows that all left the loss
        has none of.
        """
        loss = super()._compute_loss(model, inputs)
        if self.beta == 0 or not self.model.training:
            return loss
        loss_mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        kls = self._metrics["train"]["kl"]
        if self.accelerator.reduce(loss_mask.sum(), reduction="sum") == 0:
            kls[-1] = math.nan  # which the log leaves out
        kl = self.note_kl(kls[-1])
        if kl is not None:
            self._decide_temperature(kl)
        if kl is not None and self.args.adaptive_kl:
            self._metrics["train"]["beta"].append(self.beta)
        return loss

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        return {
            **self.rollout_state(),
            **self.kl_state(),
            **self.temperature_state(),
            **self.reward_state(),
            **self.sampling_state(),
            "metrics": metrics_state(self._metrics["train"]),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.load_rollout_state(state)
        self.load_kl_state(state)
        self.load_temperature_state(state)
        self.load_reward_state(state)
        self.load_sampling_state(state)
        self._metrics["train"] = restored_metrics(state["metrics"])


# -- the script ------------------------------------------------------------------------------------------------------


@dataclass
class GRPOScriptArguments(DataArguments):
    """The data, and what it is rewarded by."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Rewards: names, dotted paths, or mappings with parameters (rewards/registry.py).",
            "type": list[str | dict],
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.reward_funcs = parse_entries(self.reward_funcs)
        if not self.reward_funcs:
            raise ValueError("reward_funcs: expected at least one reward, found none")


def _load(script: GRPOScriptArguments, args: GRPOConfig, model_args: ModelConfig, counts: TokenCounts) -> MemoryDemand:
    return replace(
        base_load(script, args, model_args, counts),
        reference=args.beta > 0 and not model_args.use_peft,
        generated_rows=args.per_device_train_batch_size * args.steps_per_generation,
        completion_tokens=args.max_completion_length,
        **vllm_load(args, model_args),
    )


def main(argv: list[str] | None = None) -> None:
    with readable_errors():
        script, args, model_args, recipe = set_up("GRPO", (GRPOScriptArguments, GRPOConfig, ModelConfig), argv)
        check_sampling(args, script.validate_only)
        check_vllm(script, args, model_args)

        # Rewards
        rewards = build_rewards(script.reward_funcs, script.agents)

        # Data
        model = checked_model(script, args, model_args)
        check_image_inputs(model)
        train_rows, eval_rows, counts = load_rows_and_held_out(script, args, model)
        check_enough_rows(len(train_rows), args, script.dataset_name)
        check_columns(rewards, train_rows, script.dataset_name)
        check_columns(rewards, eval_rows or [], script.dataset_name)
        check_vllm_model(args, model_args, model, counts, [*train_rows, *(eval_rows or [])])
        if counts is not None:
            say_estimate(model.config, _load(script, args, model_args, counts))
        start = begin_run("GRPO", script, args, model_args, {"train": train_rows, "evaluation": eval_rows})
        if start is None:
            return
        check_there(rewards)

        # Trainer
        args.remove_unused_columns = False  # rows are looked up when they are needed
        trainer = GRPOTrainer(
            reward_funcs=rewards,
            args=args,
            train_dataset=to_dataset(train_rows, model.bounds),
            eval_dataset=to_dataset(eval_rows, model.bounds) if eval_rows is not None else None,
            processing_class=model.processor,
            **policy_arguments(args, model_args),
            samples=SampleLog(args.output_dir),
        )
        shown, source = held_out_rows(script, train_rows, eval_rows)
        trainer.add_callback(rollout_samples(trainer, trainer.kept_samples, shown, source, model.bounds))

        # Train, save, report
        described = describe_rewards(script.reward_funcs, args.reward_weights)
        train_and_record(trainer, start, recipe, script.dataset_name, model_args.model_name_or_path, described)


if __name__ == "__main__":
    main()
