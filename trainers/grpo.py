"""GRPO: a model answers each prompt several times, and learns from which answers its rewards prefer.

    accelerate launch trainers/grpo.py --config recipes/agent_selection.yaml

Runs TRL's own loop; what is added is listed in `GRPOConfig`. See docs/agent_selection.md.
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "GRPO", "GRPOScriptArguments", "GRPOConfig", "ModelConfig")

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import trl
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch.utils.data import Sampler
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import ModelConfig
from trl.trainer.utils import (
    RepeatSampler,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from models.families.loading import VISION_TOKENS, vision_token_ids
from models.shared_prefix.prefill import shared_prefill
from models.shared_prefix.sharing import SharedPrefix
from rewards.registry import build_rewards
from rewards.scoring.columns import check_columns
from rewards.scoring.guard import LARGEST_REWARD, WHY_NO_LARGER, Failure, GuardedReward, RewardError, guard, settle
from trainers.losses import advantages_of_compared, best_of_group, compared_rewards
from trainers.mixins.adaptive_kl import AdaptiveKL, AdaptiveKLArguments
from trainers.mixins.checkpoints import CompleteCheckpoints, metrics_state, restored_metrics
from trainers.mixins.dynamic_sampling import DynamicSampling, Rollout, without_contrast
from trainers.mixins.enough_rows import TrainsSomething, check_enough_rows
from trainers.mixins.finite import FiniteTraining
from trainers.mixins.image_bounds import PromptArguments, processor_of
from trainers.mixins.rollout_batch import Batch, load_batches, rows_in, save_batches, shuffle_by_groups
from trainers.mixins.rollout_temperature import ScheduledTemperature
from trainers.mixins.shared_prompts import SharedLogProbs, SharingArguments
from trainers.mixins.vision_tower import TrainsVisionTower, VisionTowerArguments
from trainers.report.fixed_samples import held_out_rows, rollout_samples
from trainers.report.publishing import PublishedRun
from trainers.report.record import RunInfo
from trainers.report.samples import SampleGroup, SampleLog, right_answers
from trainers.run.console import say
from trainers.run.machine import command_line
from trainers.run.resuming import begin_run, hold_output
from trainers.run.script import describe_rewards, load_rows_and_held_out, readable_errors, train_and_record
from trainers.schedules import Curriculum
from trainers.setup.adapter_targets import check_adapters
from trainers.setup.checks import check_set_up
from trainers.setup.memory import MemoryDemand, base_load, say_estimate
from trainers.setup.model import (
    class_of_its_revision,
    hub_arguments,
    init_kwargs,
    inspect_model,
    model_init_kwargs,
    policy_arguments,
)
from trainers.setup.model_settings import check_model_settings
from trainers.setup.own_config import CheckedSettings, config_or_default
from trainers.setup.recipes import DataArguments, parse_entries, parse_recipe
from trainers.setup.task_data import TokenCounts, to_dataset

_OTHER_TEXTS = ("completion", "chosen", "rejected", "messages")
"""Columns of other trainers, which rewards may read. TRL asks any one of those that a row with images has whether it
is a conversation, a set's order deciding which; so it sees the prompt alone until the rewards are called."""
_MEAN_OVER_ROWS = ("grpo", "sapo", "luspo", "dr_grpo")
"""Loss types that average over rows, so that rows that left the loss must leave the average too."""


@dataclass
class GRPOConfig(
    CheckedSettings, PromptArguments, SharingArguments, VisionTowerArguments, AdaptiveKLArguments, trl.GRPOConfig
):
    """`trl.GRPOConfig` with the additions below; with their defaults only the advantage clip differs from TRL."""

    advantage_clip: float | None = field(
        default=5.0, metadata={"help": "Largest absolute advantage, in standard deviations of the group; null: none."}
    )
    advantage_std_floor: float = field(
        default=0.0, metadata={"help": "Smallest standard deviation of a group's rewards to divide by."}
    )
    temperature_schedule: Literal["constant", "linear", "kl"] = field(
        default="constant",
        metadata={"help": "How the rollout temperature moves from `temperature`: linear to `temperature_end` over the "
                  "run, or cooler above `kl_target_max` and hotter below `kl_target_min`."},
    )  # fmt: skip
    temperature_end: float = field(default=1.0, metadata={"help": "Temperature at the last step (linear)."})
    temperature_factor: float = field(default=1.05, metadata={"help": "Factor of a change of temperature (kl)."})
    temperature_min: float = field(default=0.5, metadata={"help": "Lowest temperature (kl)."})
    temperature_max: float = field(default=1.5, metadata={"help": "Highest temperature (kl)."})
    curriculum_top_k: int | None = field(
        default=None,
        metadata={"help": "Completions of a group, best first, that count in the first part of training."},
    )
    curriculum_share: float = field(
        default=0.3, metadata={"help": "Share of the optimizer steps that are the first part of training."}
    )
    dynamic_sampling_rounds: int = field(
        default=0,
        metadata={"help": "How often groups whose rewards are all equal are replaced by groups of other prompts."},
    )
    keep_groups_together: bool = field(
        default=True, metadata={"help": "Shuffle whole groups instead of rows before cutting micro-batches."}
    )

    def __post_init__(self):
        self.scale_rewards = {True: "group", False: "none"}.get(self.scale_rewards, self.scale_rewards)  # as TRL does
        super().__post_init__()
        if self.temperature_min > self.temperature_max:
            raise ValueError(
                f"temperature_min ({self.temperature_min}) must not exceed temperature_max ({self.temperature_max})"
            )
        if self.temperature_schedule == "kl" and self.beta == 0:
            raise ValueError("temperature_schedule: kl needs the KL to a reference model: set beta above 0")
        if self.multi_objective_aggregation != "sum_then_normalize" and self.advantage_std_floor > 0:
            raise ValueError("advantage_std_floor needs multi_objective_aggregation: sum_then_normalize")


class GroupSampler(RepeatSampler):
    """TRL's sampler of repeated prompts, whose order depends on the epoch alone and not on how often it was asked.

    So a run resumed in its second epoch sees the prompts that it would have seen.

    Args:
        epoch: returns the number of the epoch that starts.
    """

    def __init__(self, *args: Any, epoch: Callable[[], int], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._epoch = epoch

    def __iter__(self):
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed + self._epoch())
        yield from super().__iter__()


class GRPOTrainer(
    SharedLogProbs,
    DynamicSampling,
    AdaptiveKL,
    ScheduledTemperature,
    TrainsSomething,
    FiniteTraining,
    CompleteCheckpoints,
    PublishedRun,
    TrainsVisionTower,
    trl.GRPOTrainer,
):
    """`trl.GRPOTrainer` that scores with guarded rewards, computes advantages by `trainers.losses.group_advantages`
    and each prompt once a micro-batch, and adapts KL coefficient, temperature and curriculum as `GRPOConfig` says.

    Args:
        model, train_dataset, ...: see `trl.GRPOTrainer`, whose order is the same.
        reward_funcs: any functions `reward(completions, **columns)`; `rewards.registry.build_rewards` makes guarded
            ones from a recipe, others are guarded with `on_error="raise"`.
        args: a `GRPOConfig`; of a `trl.GRPOConfig` the additions have their defaults. Its `model_init_kwargs` say at
            which revision reference and processor are loaded, also those of a model that is loaded already.
        samples: where groups are stored for the run's report; by default nowhere.
    """

    _name = "GRPO"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Callable | list[Callable] | None = None,
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
        rewards = [] if reward_funcs is None else reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.sharing = SharedPrefix(args.shared_prefix, args.shared_prefix_check)
        with class_of_its_revision(model, args):
            super().__init__(
                model,
                [self._guarded(self._loaded(reward, args)) for reward in rewards],
                args,
                train_dataset,
                eval_dataset,
                processing_class,
                *others,
                **kwargs,
            )
        self.reward_funcs = [self._guarded(reward) for reward in self.reward_funcs]  # those of environments too
        self.samples = samples
        self.curriculum = Curriculum(args.curriculum_top_k, args.curriculum_share)
        self._check_can_redraw()
        self._rewards_per_func: torch.Tensor | None = None  # (N, R) of all processes, NaN where None
        self._held_back: list[dict[str, Any]] = []  # columns of each local row that only the rewards see
        self._reward_rows = 0
        self._fits = False  # whether stored rollouts are cut as this run's are
        self._reward_errors: Counter[str] = Counter()
        self._prepare_temperature()

    # -- set-up ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _loaded(reward: Any, args: GRPOConfig) -> Any:
        """A reward model that is given by its name, which the parent would ask for the policy's revision."""
        if not isinstance(reward, str):
            return reward
        placed = ("revision", "device_map")  # the parent places it later
        options = {"trust_remote_code": args.trust_remote_code} | init_kwargs(args)
        options = {key: value for key, value in options.items() if key not in placed}
        return AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1, **options)

    @staticmethod
    def _guarded(reward: Callable) -> Callable:
        if isinstance(reward, GuardedReward | torch.nn.Module | str):
            return reward
        return guard(reward, getattr(reward, "__name__", type(reward).__name__))

    @staticmethod
    def _without_vision_tokens(args: GRPOConfig, processing_class: Any) -> dict[str, Any] | None:
        """Generation options under which no token that stands for a picture can be sampled."""
        if not isinstance(processing_class, ProcessorMixin):
            return args.generation_kwargs
        options = dict(args.generation_kwargs or {})
        if args.use_vllm:
            options["bad_words"] = [*options.get("bad_words", []), *VISION_TOKENS]
        else:
            suppressed = set(options.get("suppress_tokens") or []) | set(vision_token_ids(processing_class.tokenizer))
            options["suppress_tokens"] = sorted(suppressed)
        return options

    def _get_train_sampler(self, dataset=None) -> Sampler:
        return GroupSampler(
            dataset if dataset is not None else self.train_dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset) -> Sampler:
        return GroupSampler(
            eval_dataset, mini_repeat_count=self.num_generations_eval, seed=self.args.seed, epoch=lambda: 0
        )

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> Batch:
        """The parent's, but for the shuffle: it keeps the rows of a group together."""
        if not self.model.training or not self.args.keep_groups_together:
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            first = self.accelerator.process_index * rows_in(batch)
            groups = [(first + row) // self.num_generations for row in range(rows_in(batch))]
            parts = split_tensor_dict(shuffle_by_groups(batch, groups), steps)
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in parts]
        return self._buffered_inputs[self._step % steps]

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple:
        """The parent's; transformers reads each prompt once for all its completions."""
        with shared_prefill(self.model, on=not self.use_vllm and self.sharing.usable(self.model)):
            return super()._generate_single_turn(*args, **kwargs)

    def _generate(self, prompts: list) -> tuple:
        """The parent's, with no images given as an empty list: the processor cannot take `None` beside images."""
        *generated, images, tool_images = super()._generate(prompts)
        images = None if images is None else [of_row or [] for of_row in images]
        return *generated, images, tool_images

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
        self._store_sample(rollout)
        return rollout.batch

    def _roll_out(self, inputs: list[dict[str, Any]]) -> Rollout:
        """One round of the parent's generation and scoring."""
        logs_images, self.log_multimodal = self.log_multimodal, False
        with_images = "images" in inputs[0] or "image" in inputs[0]
        held_back = _OTHER_TEXTS if with_images else ()
        self._held_back = [{name: row[name] for name in held_back if name in row} for row in inputs]
        shown = [{name: value for name, value in row.items() if name not in held_back} for row in inputs]
        try:
            batch = super()._generate_and_score_completions(shown)
        finally:
            self.log_multimodal = logs_images
        if logs_images and with_images:
            self._log_images(inputs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        return Rollout(inputs, batch, self._rewards_per_func.unflatten(0, (-1, size)))

    def _log_images(self, inputs: list[dict[str, Any]]) -> None:
        """As the parent logs them, but on every process: a process without images would leave the others waiting."""
        images = [row.get("images") or ([row["image"]] if row.get("image") is not None else []) for row in inputs]
        self._logs["images"].extend(gather_object(images))

    def _finish(self, rollout: Rollout, mode: str) -> None:
        """Puts advantages into the batch, and takes the rows that do not count out of its loss."""
        batch, rows = rollout.batch, rows_in(rollout.batch)
        local = slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)
        batch["advantages"] = self._advantages(rollout.rewards).flatten()[local].to(batch["advantages"].dtype)
        counted = self._counted_rows(rollout.rewards, mode)
        if not counted.all():
            kept = counted.flatten()[local].unsqueeze(1).to(batch["completion_mask"].dtype)  # (rows, 1)
            batch["tool_mask"] = batch.get("tool_mask", torch.ones_like(batch["completion_mask"])) * kept
            batch["row_scale"] = 1 / counted.float().mean().clamp(min=1 / counted.numel())
        loss_mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        batch["num_items_in_batch"] = self.accelerator.gather(loss_mask.sum()).sum()

    def _compared(self, rewards: torch.Tensor) -> torch.Tensor:
        """(groups, G): what candidates with rewards (groups, G, R) are compared by, NaN where none has any."""
        weights = self.reward_weights.to(rewards.device)
        return compared_rewards(rewards, weights, self.multi_objective_aggregation)

    def _advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """(groups, G) advantages of all processes."""
        floor, clip = self.args.advantage_std_floor, self.args.advantage_clip
        compared = self._compared(rewards)
        return advantages_of_compared(compared, self.multi_objective_aggregation, self.scale_rewards, floor, clip)

    def _counted_rows(self, rewards: torch.Tensor, mode: str) -> torch.Tensor:
        """(groups, G): the rows that take part in the loss."""
        compared = self._compared(rewards)
        valid = ~compared.isnan()
        k = self.curriculum.k_at(self.state.global_step, self.state.max_steps) if mode == "train" else None
        return valid if k is None else best_of_group(compared.nan_to_num(), valid, k)

    def _relog_advantages(self, rewards: torch.Tensor) -> None:
        """Puts this trainer's advantages into the parent's log of completions in place of its own."""
        values = self._advantages(rewards).flatten().tolist()
        log = self._logs["advantages"]
        for _ in range(min(len(values), len(log))):
            log.pop()
        log.extend(values)

    def _store_sample(self, rollout: Rollout) -> None:
        """Keeps the first group for the report, now and then."""
        if self.samples is None or not self.model.training or not self.accelerator.is_main_process:
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
            row["prompt"], row.get("images") or [], texts, scores, advantages, answers=right_answers(row)
        )
        self.samples.add(self.state.global_step, group)

    # -- rewards -----------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> torch.Tensor:
        """The parent's; then all processes stop together if a reward failed on one of them."""
        inputs = [{**row, **kept} for row, kept in zip(inputs, self._held_back, strict=True)]
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        guarded = [reward for reward in self.reward_funcs if isinstance(reward, GuardedReward)]
        rank = self.accelerator.process_index
        mine = [replace(failure, rank=rank) for reward in guarded for failure in reward.failures]
        failures: list[Failure] = gather_object(mine)
        self._reward_rows += len(self._rewards_per_func)
        if failures or self._reward_errors:
            self._apply_failure_policy(guarded, failures)
        self._check_magnitude(inputs)
        return self._rewards_per_func

    def _check_magnitude(self, inputs: list[dict[str, Any]]) -> None:
        """Stops where a weighted reward, or the sum of a row's, is too large to compare; so do models as rewards that
        return what is not finite.

        Raises:
            RewardError: on every process, names reward and row.
        """
        weighted = self._rewards_per_func * self.reward_weights.to(self._rewards_per_func)  # (N, R)
        models = [isinstance(reward, torch.nn.Module) for reward in self.reward_funcs]
        unsound = weighted.isnan() & torch.tensor(models, device=weighted.device) | (weighted.abs() > LARGEST_REWARD)
        too_large = weighted.nansum(dim=1).abs() > LARGEST_REWARD
        rows = (unsound.any(dim=1) | too_large).nonzero()
        if not len(rows):
            return
        names = gather_object([str(row.get("id", f"{place} of the batch")) for place, row in enumerate(inputs)])
        row = int(rows[0])
        places = unsound[row].nonzero().flatten().tolist() or range(weighted.shape[1])
        parts = [f"'{self.reward_func_names[place]}' gives {weighted[row, place].item()}" for place in places]
        raise RewardError(
            f"step {self.state.global_step + 1}: row {names[row]}: reward {', '.join(parts)} (times its weight); "
            f"expected finite numbers whose sum is between -1e18 and 1e18: {WHY_NO_LARGER}"
        )

    def _apply_failure_policy(self, guarded: list[GuardedReward], failures: list[Failure]) -> None:
        """Raises the same error on every process, or counts the errors and goes on; see `settle`."""
        settle(guarded, failures, self._reward_errors, self._reward_rows)
        mode = "train" if self.model.training else "eval"
        for reward in guarded:
            errors = sum(failure.reward == reward.name for failure in failures)
            self._metrics[mode][f"rewards/{reward.name}/errors"].append(float(errors))

    # -- loss and schedules ------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs: Batch) -> torch.Tensor:
        """The parent's; rows that left the loss also leave its average, and the KL is noted for the schedules.

        Such rows count as zeros in a mean over rows of policy and KL, which are therefore scaled up, by way of
        advantages and beta. The entropy bonus and the load-balancing loss are means over tokens, and stay as they are.
        """
        beta = self.beta
        if "row_scale" in inputs and self.loss_type in _MEAN_OVER_ROWS:
            self.beta = beta * inputs["row_scale"].item()
            inputs = {**inputs, "advantages": inputs["advantages"] * inputs["row_scale"]}
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        if beta != 0 and self.model.training:
            self._follow_kl(inputs)
        return loss

    def _follow_kl(self, inputs: Batch) -> None:
        """Lets beta and temperature follow the KL; a micro-batch of rows that all left the loss has none."""
        loss_mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        kls = self._metrics["train"]["kl"]
        if self.accelerator.reduce(loss_mask.sum(), reduction="sum") == 0:
            kls[-1] = math.nan  # which the log leaves out
        kl = self.note_kl(kls[-1])
        if kl is not None:
            self._decide_temperature(kl)
        if kl is not None and self.args.adaptive_kl:
            self._metrics["train"]["beta"].append(self.beta)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        return {
            "micro_steps": self._step,
            "layout": self._layout(),
            **self.kl_state(),
            **self.temperature_state(),
            "metrics": metrics_state(self._metrics["train"]),
            "reward_rows": self._reward_rows,
            "reward_errors": dict(self._reward_errors),
        }

    def _layout(self) -> dict[str, int]:
        """How rollouts are cut into micro-batches; stored ones fit no other."""
        args = self.args
        return {
            "processes": self.accelerator.num_processes,
            "rows": args.per_device_train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "steps_per_generation": args.steps_per_generation,
            "iterations": self.num_iterations,
            "group": self.num_generations,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._fits = state["layout"] == self._layout()
        self._step = state["micro_steps"] if self._fits else self._micro_steps_so_far()
        self.load_kl_state(state)
        self.load_temperature_state(state)
        self._metrics["train"] = restored_metrics(state["metrics"])
        self._reward_rows = state["reward_rows"]
        self._reward_errors = Counter(state["reward_errors"])

    def _micro_steps_so_far(self) -> int:
        """Where in the order of its micro-batches the run is, under a layout that is not the checkpoint's.

        In the middle of a rollout its prompts are rolled out anew, and those of its micro-batches that are left count.
        """
        accumulation = self.args.gradient_accumulation_steps
        batches = len(self.get_train_dataloader())
        steps = -(-batches // accumulation)
        epochs, step = divmod(self.state.global_step, steps)
        return epochs * batches + step * accumulation

    def _buffer_file(self, folder: Path) -> Path:
        return folder / f"rollouts_{self.accelerator.process_index}.safetensors"

    def save_process_state(self, folder: Path) -> None:
        """Completions that later steps will still use, where the checkpoint falls between two rollouts."""
        in_use = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        if in_use and self._buffered_inputs is not None:
            save_batches(self._buffered_inputs, self._buffer_file(folder))

    def load_process_state(self, folder: Path) -> None:
        stored = self._buffer_file(folder)
        if self._fits and stored.is_file():
            self._buffered_inputs = load_batches(stored, self.accelerator.device)


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
        vllm_share=args.vllm_gpu_memory_utilization if args.use_vllm and args.vllm_mode == "colocate" else None,
    )


def main(argv: list[str] | None = None) -> None:
    with readable_errors():
        script, args, model_args, recipe = parse_recipe((GRPOScriptArguments, GRPOConfig, ModelConfig), argv)
        check_set_up("GRPO", script, args, model_args)
        hold_output(script, args)

        # Rewards
        rewards = build_rewards(script.reward_funcs, script.agents)

        # Data
        model = inspect_model(
            model_args.model_name_or_path, args, not script.validate_only, hub_arguments(args, model_args)
        )
        check_model_settings(args, model)
        check_adapters(model.config, args, model_args)
        train_rows, eval_rows, counts = load_rows_and_held_out(script, args, model)
        check_enough_rows(len(train_rows), args, script.dataset_name)
        check_columns(rewards, train_rows, script.dataset_name)
        check_columns(rewards, eval_rows or [], script.dataset_name)
        if counts is not None:
            say_estimate(model.config, _load(script, args, model_args, counts))
        if script.validate_only:
            say("valid")
            return
        start = begin_run("GRPO", script, args, model_args, {"train": train_rows, "evaluation": eval_rows})
        if start is None:
            return

        # Trainer
        args.model_init_kwargs = model_init_kwargs(args, model_args)
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
        trainer.add_callback(rollout_samples(trainer, trainer.samples, shown, source, model.bounds))

        # Train, save, report
        info = RunInfo(
            method="GRPO",
            command=command_line(),
            recipe=recipe.text,
            dataset=script.dataset_name,
            base_model=model_args.model_name_or_path,
            rewards=describe_rewards(script.reward_funcs, args.reward_weights),
        )
        train_and_record(trainer, info, recipe, start)


if __name__ == "__main__":
    main()
