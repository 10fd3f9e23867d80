"""RCE: a policy learns its stored candidates, the more the higher their reward (reward-weighted cross-entropy).

    vlm-posttrain rce --config selector_rce
    accelerate launch trainers/rce.py --config recipes/selector_rce.yaml

The policy is an example selector (candidates are pointers) or a VLM (completions); transformers' Trainer runs the
loop. See docs/rce_and_offline_grpo.md.
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "RCE", "GroupArguments", "RCEConfig", "ModelConfig")

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import transformers
from peft import PeftConfig
from torch import nn
from transformers import EvalPrediction
from trl import ModelConfig

from models.families.loading import image_reader
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import RewardTable
from trainers.groups.from_python import Groups, as_groups
from trainers.groups.policies import Batch, GroupLogProbs, GroupPolicy, prepare_groups
from trainers.groups.vlm_policy import VLMPolicy
from trainers.losses import best_weights, groups_without_contrast, normalise_rewards, rce_loss, softmax_weights
from trainers.mixins.checkpoints import CompleteCheckpoints, metrics_state, restored_metrics
from trainers.mixins.enough_rows import TrainsSomething
from trainers.mixins.image_bounds import PromptArguments, hub_of, processor_of
from trainers.mixins.non_finite import FiniteTraining
from trainers.mixins.shared_prompts import SharingArguments
from trainers.mixins.vision_tower import TrainsVisionTower, VisionTowerArguments
from trainers.report.fixed_samples import FixedSamples, chosen
from trainers.report.group_samples import group_sample
from trainers.report.publishing import PublishedRun
from trainers.report.samples import SampleGroup, SampleLog, Source
from trainers.run.early_stopping import EarlyStoppingArguments
from trainers.run.script import readable_errors, set_up
from trainers.schedules import linear_temperature
from trainers.setup.default_config import CheckedSettings, config_or_default
from trainers.setup.model import init_kwargs
from trainers.setup.recipes import RecipeError


@dataclass
class GroupConfig(
    CheckedSettings,
    PromptArguments,
    SharingArguments,
    VisionTowerArguments,
    EarlyStoppingArguments,
    transformers.TrainingArguments,
):
    """`transformers.TrainingArguments`, with what trainers on stored groups have in common."""

    reward_normalization: Literal["raw", "z_score", "z_score_clamp", "rank"] = field(
        default="raw", metadata={"help": "What is done to the rewards of each group before they are used."}
    )
    reward_clamp: float = field(default=3.0, metadata={"help": "Largest absolute reward of z_score_clamp."})
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Selector: leave input_proj, query_proj and cand_proj as they are."}
    )
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "VLM: further arguments of from_pretrained."}
    )

    def __post_init__(self):
        self.remove_unused_columns = False  # batches are the policy's
        super().__post_init__()


@dataclass
class RCEConfig(GroupConfig):
    """Settings of reward-weighted cross-entropy: weights are softmax(reward / temperature) within a group."""

    temperature_start: float = field(default=2.0, metadata={"help": "Temperature at the first optimizer step."})
    temperature_end: float = field(default=0.5, metadata={"help": "Temperature at the last one; linear in between."})
    top1: bool = field(default=False, metadata={"help": "Learn the best candidate of each group alone."})


OWN_ARGUMENTS = {"data_collator", "compute_metrics"}
"""Of `transformers.Trainer`, what learning from groups needs for itself."""


class RCETrainer(
    TrainsSomething, FiniteTraining, CompleteCheckpoints, PublishedRun, TrainsVisionTower, transformers.Trainer
):
    """`transformers.Trainer` on stored groups: the loss is `trainers.losses.rce_loss`, averaged over all groups of an
    optimizer step however they are spread over micro-batches and processes.

    Args:
        model: of the policy, or its folder or Hub id.
        args: by default those of `config_class`.
        train_dataset, eval_dataset: candidate groups: a data set of rows as `data.candidate_groups` has them, each
            candidate with its `reward`; or what `trainers.groups.data.stored_groups` makes of them, which can take
            the reward from other fields or from reward functions.
        processing_class: of a VLM, by default the processor of its folder or Hub id; saved with the model.
        policy: how groups become batches and log-probabilities; by default that of a VLM. An example selector needs
            a `SelectorPolicy`, which has its embeddings.
        peft_config, quantization_config: of a VLM that is given by its name.
        samples: where groups are stored for the run's report; by default nowhere, or as `report` needs.

    Raises:
        TypeError: another configuration, or data of another kind.
        RecordError: rows that cannot be used, or prompts longer than `args.max_prompt_length`.
        RecipeError: settings that the policy does not read.

    Attributes:
        config_class: of `args`.
        figure_names: what an evaluation measures of each group, beside the loss.
    """

    config_class: ClassVar[type[GroupConfig]] = RCEConfig
    figure_names: ClassVar[tuple[str, ...]] = ("accuracy", "expected_reward")
    policy: GroupPolicy

    def __init__(
        self,
        model: nn.Module | str,
        args: transformers.TrainingArguments | None = None,
        train_dataset: Groups | None = None,
        eval_dataset: Groups | None = None,
        processing_class: Any = None,
        *,
        policy: GroupPolicy | None = None,
        peft_config: PeftConfig | None = None,
        quantization_config: Any = None,
        samples: SampleLog | None = None,
        **kwargs: Any,
    ):
        for name in OWN_ARGUMENTS & {*kwargs}:
            raise TypeError(f"{name}: {type(self).__name__} makes batches and figures of groups itself; leave it out")
        args = config_or_default(args, self.config_class, model, type(self).__name__.removesuffix("Trainer"))
        if policy is None:
            processing_class = processor_of(model, args, processing_class)
            policy = VLMPolicy(processing_class, image_reader(processing_class))
        self.report_kind = policy.kind
        policy.check_settings(args)
        if isinstance(model, str):
            options = hub_of(args) | init_kwargs(args)
            model = policy.load(model, args, options, quantization_config, peft_config)
        elif args.model_init_kwargs or peft_config is not None or quantization_config is not None:
            raise RecipeError("model_init_kwargs, peft_config, quantization_config: of a VLM by its name")
        train_groups = as_groups(train_dataset, "train_dataset", policy, model)
        eval_groups = None if eval_dataset is None else as_groups(eval_dataset, "eval_dataset", policy, model)
        groups = [*train_groups, *(eval_groups or ())]
        policy.check_groups(groups, "train_dataset, eval_dataset", args)
        items = prepare_groups(policy, groups)
        self.policy = policy
        self.train_groups = list(train_groups)
        self.all_groups = groups
        self.samples = samples
        self.groups = RewardTable(groups)
        self._figures: dict[str, list[float]] = defaultdict(list)  # of the micro-batches since the last log
        policy.set_up(model, args)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # policies give every parameter a gradient, on every process
        callbacks = [*(kwargs.pop("callbacks", None) or ()), *args.early_stopping()]
        super().__init__(
            model,
            args=args,
            data_collator=policy.collate,
            train_dataset=items[: len(train_groups)],
            eval_dataset=items[len(train_groups) :] if eval_groups else None,
            processing_class=processing_class,
            compute_metrics=self._group_means,
            callbacks=callbacks,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # the loss below is divided by the groups of the whole step

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Raises `TypeError` for groups that the trainer does not know."""
        if not any(eval_dataset is known for known in (None, self.eval_dataset, self.train_dataset)):
            found = f"found {eval_dataset!r:.80}"
            raise TypeError(f"evaluate: expected the eval_dataset or train_dataset of the trainer, {found}")
        return super().get_eval_dataloader(eval_dataset)

    # -- loss ---------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        """The parent counts labels; this counts the groups of a step, over all processes."""
        count = torch.tensor(float(sum(len(batch["index"]) for batch in batch_samples)), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The mean of `group_losses` over the groups of the step; what wraps the model averages over processes."""
        scored = self.policy.group_log_probs(model, inputs)
        losses = self.group_losses(scored, inputs["index"])  # (B,)
        figures = self.group_figures(scored, inputs["index"])  # (B, figures)
        if self.model.training:
            self.note(accuracy=figures[:, 0], expected_reward=figures[:, 1])
            self._store_sample(scored, inputs["index"])
        if num_items_in_batch is None:
            loss = losses.mean()
        else:
            loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, figures) if return_outputs else loss

    def group_losses(self, scored: GroupLogProbs, index: torch.Tensor) -> torch.Tensor:
        """(B,): the loss of each group.

        Args:
            index: (B,), rows of `self.groups`.
        """
        cross_entropy = scored.of_candidates(scored.cross_entropy, self.policy.mean_over_steps)  # (B, G)
        rewards, valid = self.normalised_rewards(index, cross_entropy.shape[1])
        temperature = self.temperature()
        if self.model.training:
            self._figures["temperature"].append(temperature)
            self.note(frac_reward_zero_std=groups_without_contrast(rewards, valid).float())
        return rce_loss(cross_entropy, rewards, valid, temperature, self.args.top1, per_group=True)

    def temperature(self) -> float:
        """Of the weights, at this optimizer step."""
        step, steps = self.state.global_step, self.state.max_steps
        return linear_temperature(step, steps, self.args.temperature_start, self.args.temperature_end)

    def normalised_rewards(self, index: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, size) rewards as the recipe wants them, and which are valid."""
        rewards, valid = self.groups.rows(index, size)
        return normalise_rewards(rewards, valid, self.args.reward_normalization, self.args.reward_clamp), valid

    def preferences(self, index: torch.Tensor, size: int) -> tuple[str, torch.Tensor]:
        """What the loss makes of the candidates of groups `index` (B,): what it is called, and (B, size)."""
        rewards, valid = self.normalised_rewards(index, size)
        if self.args.top1:
            return "weight", best_weights(rewards, valid, 1)
        return "weight", softmax_weights(rewards, valid, self.temperature())

    def described_rewards(self) -> list[str]:
        return ["reward, as stored"]

    # -- samples ------------------------------------------------------------------------------------------------------

    def _store_sample(self, scored: GroupLogProbs, index: torch.Tensor) -> None:
        """Keeps the batch's first group for the report, now and then."""
        if self.samples is None or not self.is_world_process_zero():
            return
        if self.samples.wants(self.state.global_step, self.state.max_steps):
            [sample] = self.samples_of(scored, index, count=1)
            self.samples.add(self.state.global_step, sample)

    @torch.no_grad()
    def samples_of(self, scored: GroupLogProbs, index: torch.Tensor, count: int) -> list[SampleGroup]:
        """The first groups of a batch as the report shows them."""
        total = scored.of_candidates(scored.log_probs, self.policy.mean_over_steps)  # (B, G)
        exists = scored.mask.any(dim=2)
        probabilities = softmax_weights(total, exists, 1.0)
        name, advantages = self.preferences(index, total.shape[1])
        rows = [values[:count].tolist() for values in (index, total, probabilities, advantages)]
        return [
            group_sample(self.all_groups[number], self.policy, likelihoods, shares, preferred, name)
            for number, likelihoods, shares, preferred in zip(*rows, strict=True)
        ]

    def fixed_samples(self) -> FixedSamples:
        """The same few groups at every sampled step, scored on the main process alone."""
        source: Source = "training data" if self.eval_dataset is None else "held out"
        items = chosen(self.train_dataset if self.eval_dataset is None else self.eval_dataset, self.args.seed)

        def make(step: int) -> dict[Source, list[SampleGroup]]:
            batch = self._prepare_inputs(self.policy.collate(items))
            scored = self.policy.group_log_probs(self.accelerator.unwrap_model(self.model), batch)
            return {source: self.samples_of(scored, batch["index"], len(items))}

        return FixedSamples(self, self.kept_samples, make)

    # -- figures ------------------------------------------------------------------------------------------------------

    def _group_means(self, prediction: EvalPrediction) -> dict[str, float]:
        """Figures of an evaluation: means over the groups that have them."""
        means = (float(np.nanmean(column)) for column in prediction.predictions.T)
        return dict(zip(self.figure_names, means, strict=True))

    @torch.no_grad()
    def group_figures(self, scored: GroupLogProbs, index: torch.Tensor) -> torch.Tensor:
        """(B, 2): accuracy of the candidate that the policy finds most likely (by the mean over its steps), and the
        expected reward under the policy restricted to the candidates. NaN for a group without any accuracy.
        """
        each = scored.of_candidates(scored.log_probs, mean=True)
        accuracies, measured = self.groups.accuracy_rows(index, each.shape[1])
        likely = each.masked_fill(~measured, -torch.inf).argmax(dim=1, keepdim=True)
        accuracy = accuracies.gather(1, likely).squeeze(1).masked_fill(~measured.any(dim=1), torch.nan)
        rewards, valid = self.groups.rows(index, each.shape[1])
        total = scored.of_candidates(scored.log_probs, self.policy.mean_over_steps)
        expected = (softmax_weights(total, valid, 1.0) * rewards).sum(dim=1)
        return torch.stack([accuracy, expected], dim=1)

    def note(self, **values: torch.Tensor) -> None:
        """Keeps the means over all processes for the next log; every process notes the same names.

        Args:
            values: (n,) each, NaN where a group has none.
        """
        sums = [torch.stack([value.nansum(), (~value.isnan()).sum()]) for value in values.values()]
        sums = self.accelerator.reduce(torch.stack(sums).detach().double(), reduction="sum")  # (names, 2)
        for name, (total, count) in zip(values, sums.tolist(), strict=True):
            if count:
                self._figures[name].append(total / count)

    def extra_state(self) -> dict[str, Any]:
        return {"figures": metrics_state(self._figures)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._figures = restored_metrics(state["figures"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._figures.items()}
            self._figures.clear()
        super().log(logs, start_time)

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The parent's, for batches without labels: the figures stand where logits would."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, figures = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), figures, torch.zeros_like(figures[:, 0])


# -- the script -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    from trainers.groups.run import train_on_groups

    with readable_errors():
        script, args, model_args, recipe = set_up("RCE", (GroupArguments, RCEConfig, ModelConfig), argv)
        train_on_groups(RCETrainer, "RCE", script, args, model_args, recipe)


if __name__ == "__main__":
    main()
