"""Reward model: a Qwen2-VL with a score head learns which of several responses people prefer.

    vlm-posttrain reward --config reward_model
    accelerate launch trainers/reward.py --config recipes/reward_model.yaml

Runs TRL's RewardTrainer, with images. See docs/reward_model.md.
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "reward", "PreferenceArguments", "RewardConfig", "ModelConfig")

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import trl
from accelerate import PartialState
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import AutoConfig, ProcessorMixin, TrainerCallback
from transformers.activations import ACT2FN
from trl import ModelConfig, get_quantization_config

from data.cli.suggestions import closest
from data.io.unreadable import readable_rows
from data.preferences import PreferenceRecord
from models.families.loading import pixel_bounds
from models.hub_revisions import hub_options
from models.reward.inputs import reward_messages
from models.reward.load import from_backbone, reward_model_of
from models.reward.model import HEAD
from models.shared_prefix.sharing import SharedPrefix
from rewards.preferences.accuracy import ranked_pairs
from trainers.groups.preferences import (
    GROUP_KEYS,
    Lengths,
    PreferenceArguments,
    PreferenceCollator,
    as_records,
    check_record_lengths,
    examples,
    load_checked_preferences,
    preference_content,
    preference_dataset,
)
from trainers.losses import PREFERENCE_LOSSES, centring_penalty, preference_loss, preferred, saturated
from trainers.mixins.checkpoints import CompleteCheckpoints
from trainers.mixins.early_stopping import EarlyStoppingArguments
from trainers.mixins.enough_rows import TrainsSomething, check_enough_rows
from trainers.mixins.image_bounds import PromptArguments, hub_of, processor_of
from trainers.mixins.non_finite import FiniteTraining
from trainers.mixins.shared_prompts import SharingArguments
from trainers.mixins.vision_tower import TrainsVisionTower, VisionTowerArguments
from trainers.report.fixed_samples import FixedSamples, chosen
from trainers.report.publishing import PublishedRun
from trainers.report.record import RunInfo
from trainers.report.samples import SampleGroup, SampleLog, Source
from trainers.run.console import say
from trainers.run.machine import command_line
from trainers.run.output_folder import own_folder
from trainers.run.resuming import begin_run, hold_output, origin_of
from trainers.run.script import readable_errors, train_and_record
from trainers.setup.adapter_targets import check_adapter_targets
from trainers.setup.checks import check_set_up
from trainers.setup.default_config import CheckedSettings, config_or_default
from trainers.setup.evaluation_rows import evaluation_rows
from trainers.setup.memory import base_load, say_estimate
from trainers.setup.model import (
    ALL_LINEAR,
    ModelInfo,
    base_of_adapters,
    hub_arguments,
    init_kwargs,
    inspect_model,
    lora_config,
    model_init_kwargs,
    put_adapters,
)
from trainers.setup.model_settings import check_model_settings, use_chat_template
from trainers.setup.recipes import RecipeError, parse_recipe

DEFAULT_BOUNDS = (-5.0, 5.0)


@dataclass
class RewardConfig(
    CheckedSettings, PromptArguments, SharingArguments, VisionTowerArguments, EarlyStoppingArguments, trl.RewardConfig
):
    """`trl.RewardConfig` with the additions below; texts are never cut, because half an image cannot be read."""

    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a prompt with its response may have; a longer one is an error."}
    )
    loss_type: Literal["bradley_terry", "hinge", "plackett_luce"] = field(
        default="bradley_terry", metadata={"help": "How a ranking is learned (trainers/losses.py)."}
    )
    use_margin: bool = field(
        default=False,
        metadata={"help": "Better responses must win by `margin`; a record's own `margin` always holds."},
    )
    margin: float = field(default=0.5, metadata={"help": "Margin of the records that have none (use_margin, hinge)."})
    group_responses: bool = field(
        default=False,
        metadata={
            "help": "Keep all responses of a record together, each scored once, in place of an example for every "
            "pair; plackett_luce always does."
        },
    )
    lm_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of a language-model loss on the best response, beside the ranking."}
    )
    score_min: float | None = field(
        default=None,
        metadata={"help": "Lowest score; by default -5, or the reward model's that training starts from."},
    )
    score_max: float | None = field(default=None, metadata={"help": "Highest score; by default 5, or as above."})
    unbounded: bool = field(default=False, metadata={"help": "Scores have no bounds."})
    head_activation: str | None = field(
        default=None, metadata={"help": "Between the two layers of the head; by default silu, or as above."}
    )
    system_prompt: str | None = field(
        default=None,
        metadata={"help": "System text of every conversation, stored with the model; by default the prompts' own."},
    )

    def __post_init__(self):
        self.remove_unused_columns = False  # records are looked up when they are needed
        super().__post_init__()
        self._check()

    def _check(self) -> None:
        if self.loss_type not in PREFERENCE_LOSSES:
            raise ValueError(f"loss_type: expected one of {', '.join(PREFERENCE_LOSSES)}, found {self.loss_type!r}")
        if self.head_activation is not None and self.head_activation not in ACT2FN:
            hint = closest(self.head_activation, ACT2FN)
            raise ValueError(
                f"head_activation: {hint}expected one of {', '.join(sorted(ACT2FN))}, found {self.head_activation!r}"
            )
        if self.unbounded and (self.score_min is not None or self.score_max is not None):
            raise ValueError("unbounded: score_min and score_max are bounds: set one or the other")
        if self.loss_type == "plackett_luce" and self.use_margin:
            raise ValueError("use_margin: plackett_luce has no margin")
        if self.loss_type == "plackett_luce":
            self.group_responses = True
        low = DEFAULT_BOUNDS[0] if self.score_min is None else self.score_min
        high = DEFAULT_BOUNDS[1] if self.score_max is None else self.score_max
        if not self.unbounded and not low < high:
            raise ValueError(f"score_min ({low}) must be below score_max ({high})")
        if not self.unbounded and (self.use_margin or self.loss_type == "hinge") and self.margin >= high - low:
            raise ValueError(
                f"margin: expected less than {high - low}, the largest gap between scores of {low} to {high}; found "
                f"{self.margin}"
            )

    def model_settings(self) -> dict[str, Any]:
        """What the recipe says of the reward model's configuration."""
        names = ("score_min", "score_max", "head_activation", "system_prompt")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.unbounded:
            given |= {"score_min": None, "score_max": None}
        return given | ({"language_head": True} if self.lm_loss_weight else {})

    def check_model(self, model: nn.Module) -> None:
        """Raises `ValueError` if a model that is made already has other settings than these, `TypeError` if it scores
        nothing."""
        if not hasattr(model.config, "score_min"):
            found = f"{type(model).__name__}, which has no score head"
            raise TypeError(
                f"model: expected a reward model, or the name of a model that one is made of, found {found}"
            )
        for name, value in self.model_settings().items():
            found = getattr(model.config, name)
            if found != value:
                raise ValueError(
                    f"{name}: RewardConfig says {value!r}, the model has {found!r}; give RewardTrainer the model's "
                    "name, or make it by models.reward.model.from_backbone(name, args.model_settings())"
                )


# -- the model --------------------------------------------------------------------------------------------------------


def load_reward_policy(name: str, args: RewardConfig, options: Mapping[str, Any]) -> nn.Module:
    """The reward model of a folder or Hub id: a new head on a backbone, whose first weights follow `args.seed`; or a
    reward model or its adapters to train on.

    Args:
        args: their `model_init_kwargs` are taken out: they may hold what cannot be saved.
        options: of `from_pretrained`.

    Raises:
        OSError, ValueError: it cannot be loaded.
    """
    args.model_init_kwargs = None
    torch.manual_seed(args.seed)
    hub, settings = hub_options(options), args.model_settings()
    base = base_of_adapters(name, hub)
    if base is None:
        return from_backbone(name, settings, **options)
    stored = AutoConfig.from_pretrained(name, **hub)
    kept = ("head_activation", "score_min", "score_max", "system_prompt", "language_head")
    settings = {key: getattr(stored, key) for key in kept} | settings
    model = from_backbone(base.name, settings, **{**options, "revision": base.revision})
    model.score_head.float()  # as it was stored
    return put_adapters(model, name, hub.get("revision"), base)


def with_head(config: PeftConfig) -> PeftConfig:
    """The adapters as a reward model needs them: of the backbone alone, by default of all its linear layers, with the
    head trained in full and saved beside them."""
    config = copy(config)
    config.task_type = None  # PEFT would look for the head of a classifier
    config.modules_to_save = sorted({HEAD, *(config.modules_to_save or ())})
    if config.target_modules is None and not config.target_parameters:
        config.target_modules = ALL_LINEAR
    given = config.exclude_modules or []
    patterns = [given] if isinstance(given, str) else [rf"(?:.*\.)?{re.escape(name)}" for name in given]
    config.exclude_modules = "|".join(f"(?:{pattern})" for pattern in (rf"{HEAD}\..*", *patterns))
    return config


# -- the trainer ------------------------------------------------------------------------------------------------------

Preferences: TypeAlias = Sequence[PreferenceRecord] | Dataset


def _evaluation_records(dataset: Preferences | Mapping[str, Preferences] | None) -> Any:
    """The records to evaluate on: a list, lists by their names, or none."""
    if isinstance(dataset, Mapping):
        return {key: as_records(rows, f"eval_dataset {key}") for key, rows in dataset.items()}
    return None if dataset is None else as_records(dataset, "eval_dataset")


def _evaluation_examples(records: Any, grouped: bool) -> Dataset | dict[str, Dataset] | None:
    """The same as examples."""
    if isinstance(records, dict):
        return {key: preference_dataset(examples(few, grouped)) for key, few in records.items()}
    return None if records is None else preference_dataset(examples(records, grouped))


def _quantised(config: Any) -> dict[str, Any]:
    """Options with which a model is loaded quantised, on the device that trains it; none without a configuration."""
    return {} if config is None else {"quantization_config": config, "device_map": {"": PartialState().device}}


class RewardTrainer(
    TrainsSomething, FiniteTraining, CompleteCheckpoints, PublishedRun, TrainsVisionTower, trl.RewardTrainer
):
    """`trl.RewardTrainer` on prompts with images and any number of ranked responses, with the losses of
    `trainers.losses.preference_loss`.

    The arguments stand in the order of `trl.RewardTrainer`; the others of its arguments may follow.

    Args:
        model: a reward model of `models.reward.model`, maybe with adapters; or a folder or Hub id, of which one is
            made as `args` say.
        args: by default those of `RewardConfig`; a `trl.RewardConfig` gets the defaults of the additions.
        data_collator: makes a batch of `index` and `record`; by default a `PreferenceCollator`.
        train_dataset, eval_dataset: records of `data.preferences`, or a data set with their columns or TRL's
            (`prompt`, `chosen`, `rejected`, `images`). Evaluation may be on several, by their names, which
            figures then have too: `eval_NAME_accuracy`.
        processing_class: the model's processor, by default that of its folder or Hub id.
        compute_metrics: is given scores (N, G) as predictions and ranks (N, G) as labels, lower is better, of the
            responses of N examples; -100 in both where an example has fewer than G.
        peft_config: adapters of the backbone; the head is trained in full and saved beside them.
        samples: where groups are stored for the run's report; by default nowhere, or as `report` needs.
        checked: images and lengths of all records have been checked.

    Raises:
        TypeError: another configuration, or a tokenizer in place of a processor.
        ValueError: no data, or settings that contradict the model.
        RecordError: rows that cannot be used, or are longer than `args.max_length` or `args.max_prompt_length`.
    """

    _name = "Reward"
    report_kind = "reward"
    records: tuple[list[PreferenceRecord], Any]  # to train on, and to evaluate on
    train_records: list[PreferenceRecord]
    reward_config: Any
    processing_class: Any

    def __init__(
        self,
        model: nn.Module | str,
        args: trl.RewardConfig | None = None,
        data_collator: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]] | None = None,
        train_dataset: Preferences | None = None,
        eval_dataset: Preferences | Mapping[str, Preferences] | None = None,
        processing_class: ProcessorMixin | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        *others: Any,
        samples: SampleLog | None = None,
        checked: bool = False,
        **kwargs: Any,
    ):
        args = config_or_default(args, RewardConfig, model, "Reward")
        if data_collator is not None and not callable(data_collator):
            found = type(data_collator).__name__
            raise TypeError(f"data_collator: expected a function, found {found}; data sets come after it, as in TRL")
        if train_dataset is None:
            raise ValueError("train_dataset: expected records or a data set, found none")
        train, evaluation = as_records(train_dataset, "train_dataset"), _evaluation_records(eval_dataset)
        if not isinstance(processing_class, ProcessorMixin | None):
            found = type(processing_class).__name__
            raise TypeError(f"processing_class: expected the model's processor, which reads images too, found {found}")
        source = model
        if isinstance(model, str):
            quantised = _quantised(kwargs.pop("quantization_config", None))  # the parent would leave it unread
            model = load_reward_policy(model, args, hub_of(args) | init_kwargs(args) | quantised)
        else:
            args.check_model(model)
        processing_class = processor_of(source, args, processing_class)
        if kwargs.get("peft_config") is not None:
            kwargs["peft_config"] = with_head(kwargs["peft_config"])
        self.records = train, evaluation
        self.train_records = examples(train, args.group_responses)
        self.samples = samples
        self._sums: dict[str, dict[str, float]] = {"train": {}, "eval": {}}
        collator = PreferenceCollator(processing_class, model.config.system_prompt, bool(args.lm_loss_weight))
        super().__init__(
            model,
            args,
            collator if data_collator is None else data_collator,
            preference_dataset(self.train_records),
            _evaluation_examples(evaluation, args.group_responses),
            processing_class.tokenizer,  # the parent asks it for a padding token
            compute_metrics,
            [*(callbacks or ()), *args.early_stopping()],
            *others,
            **kwargs,
        )
        self.processing_class = self.callback_handler.processing_class = processing_class
        if args.chat_template_path is not None:  # the parent gave it to the tokenizer
            processing_class.chat_template = processing_class.tokenizer.chat_template
        if not checked:
            self._check_records()
        self._plain_model().sharing = SharedPrefix(args.shared_prefix, args.shared_prefix_check)
        self.reward_config = model.config  # which bounds, which system prompt
        if self.reward_config.language_head and not args.lm_loss_weight:
            head = self.model.get_output_embeddings()
            if head.weight is not self.model.get_input_embeddings().weight:
                head.requires_grad_(False)

    def _plain_model(self) -> Any:
        """The reward model, without adapters around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def mix_with_rows_of_text(self, distributed: bool) -> None:
        """The model does it itself."""
        self._plain_model().keeps_vision_busy = distributed

    def _check_records(self) -> None:
        """Raises `RecordError` for records with an image that cannot be read, or longer than allowed; the main process
        looks for all."""
        train, evaluation = self.records
        sets = {"train_dataset": train}
        if isinstance(evaluation, dict):
            sets |= {f"eval_dataset {key}": records for key, records in evaluation.items()}
        elif evaluation is not None:
            sets["eval_dataset"] = evaluation
        for name, records in sets.items():
            self._check_set(records, name)

    def _check_set(self, records: list[PreferenceRecord], name: str) -> None:
        if records and self.is_world_process_zero():
            readable_rows(records, [f"{name}, row {number}" for number in range(1, len(records) + 1)])
            model = ModelInfo(self.model.config, self.processing_class, pixel_bounds(self.processing_class))
            check_record_lengths(records, name, model, model.config.system_prompt, self.args)

    def _given_later(self, dataset: Any, name: str) -> Any:
        """What is to be evaluated, as what the trainer was made with."""
        if dataset is None or isinstance(dataset, str) or getattr(dataset, "format", {}).get("type") == "custom":
            return dataset
        records = as_records(dataset, name)
        self._check_set(records, name)
        return preference_dataset(examples(records, self.args.group_responses))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return super().get_eval_dataloader(self._given_later(eval_dataset, "eval_dataset"))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        return super().get_test_dataloader(self._given_later(test_dataset, "test_dataset"))

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As it is: the parent would tokenise texts."""
        return dataset

    # -- loss ---------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over the batch's examples; with `return_outputs`, and a `RewardOutput`."""
        group = {key: inputs.pop(key) for key in GROUP_KEYS}
        outputs = model(**inputs)
        valid = group["rows"] >= 0  # (B, G)
        scores = outputs.logits.squeeze(1)[group["rows"].clamp(min=0)]  # (B, G)
        ranks, margins = group["ranks"], self._margins(group["margins"])
        losses = preference_loss(scores, ranks, valid, self.args.loss_type, margins)  # (B,)
        if self.args.center_rewards_coefficient:
            losses = losses + self.args.center_rewards_coefficient * centring_penalty(scores, ranks, valid)
        extra = {"preference_loss": losses.detach()}
        if self.args.lm_loss_weight:
            # The labelled response of each example is the only one whose loss is not 0.
            language = (outputs.language_losses[group["rows"].clamp(min=0)] * valid).sum(dim=1)  # (B,)
            losses = losses + self.args.lm_loss_weight * language
            extra["lm_loss"] = language.detach()
        self._note(scores.detach().float(), ranks, valid, extra)
        self._count_tokens(inputs["attention_mask"])
        self._store_sample(group, scores)
        loss = losses.mean()
        return (loss, outputs) if return_outputs else loss

    def _margins(self, of_records: torch.Tensor) -> torch.Tensor:
        """(B,): a record's own margin, or the recipe's where there is none."""
        on = self.args.use_margin or self.args.loss_type == "hinge"
        return of_records.nan_to_num(self.args.margin if on else 0.0)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The parent's, whose predictions would be rows of the batch: loss, scores (B, G) and ranks (B, G)."""
        inputs = self._prepare_inputs(inputs)
        rows, ranks = inputs["rows"], inputs["ranks"]
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        scores = outputs.logits.squeeze(1)[rows.clamp(min=0)].float()
        return loss.detach(), *(values.masked_fill(rows < 0, -100) for values in (scores, ranks))

    # -- figures ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _note(
        self, scores: torch.Tensor, ranks: torch.Tensor, valid: torch.Tensor, extra: dict[str, torch.Tensor]
    ) -> None:
        """Adds a batch of all processes to the figures since the last log."""
        pairs = preferred(ranks, valid)
        gaps = scores.unsqueeze(2) - scores.unsqueeze(1)
        near = saturated(scores, self.reward_config.score_min, self.reward_config.score_max)
        filled = scores.masked_fill(~valid, 0.0)
        ones = torch.ones(len(scores), device=scores.device)
        columns = {
            "pairs": pairs.sum(dim=(1, 2)),
            "accuracy": ((gaps > 0) & pairs).sum(dim=(1, 2)),
            "ties": ((gaps == 0) & pairs).sum(dim=(1, 2)),
            "score_gap": gaps.masked_fill(~pairs, 0.0).sum(dim=(1, 2)),
            "responses": valid.sum(dim=1),
            "score_mean": filled.sum(dim=1),
            "squares": (filled**2).sum(dim=1),
            "saturation": (near & valid).sum(dim=1),
            "examples": ones,
            "score_min": scores.masked_fill(~valid, torch.inf).amin(dim=1),
            "score_max": scores.masked_fill(~valid, -torch.inf).amax(dim=1),
            **extra,
        }
        table = torch.stack([column.double() for column in columns.values()], dim=1)  # (B, columns)
        table = self.accelerator.gather_for_metrics(table)
        sums = self._sums["train" if self.model.training else "eval"]
        for name, column in zip(columns, table.T, strict=True):
            reduce = {"score_min": min, "score_max": max}.get(name)
            values = column.tolist()
            if reduce is None:
                sums[name] = sums.get(name, 0.0) + sum(values)
            else:
                sums[name] = reduce([*values, sums.get(name, values[0])])

    def _figures(self, mode: str) -> dict[str, float]:
        """What is logged, of everything noted since the last log."""
        sums = self._sums[mode]
        if not sums:
            return {}
        figures = {name: sums[name] / sums["pairs"] for name in ("accuracy", "ties", "score_gap")}
        figures |= {name: sums[name] / sums["responses"] for name in ("score_mean", "saturation")}
        variance = sums["squares"] / sums["responses"] - figures["score_mean"] ** 2
        figures |= {"score_std": max(0.0, variance) ** 0.5, "score_min": sums["score_min"]}
        figures["score_max"] = sums["score_max"]
        losses = [name for name in ("preference_loss", "lm_loss") if name in sums]
        return figures | {name: sums[name] / sums["examples"] for name in losses}

    def _count_tokens(self, attention_mask: torch.Tensor) -> None:
        if self.model.training:
            self._total_train_tokens += int(self.accelerator.gather(attention_mask.sum()).sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        figures = self._figures(mode)
        if figures:
            figures["num_tokens"] = self._total_train_tokens
        self._sums[mode].clear()
        self._metrics[mode] = defaultdict(list, {name: [value] for name, value in figures.items()})
        timed = (key.removesuffix("_runtime") for key in reversed(logs) if key.endswith("_runtime"))
        of_set = next(timed, "eval")  # what the parent calls this evaluation
        super().log(logs, start_time)
        if mode == "eval" and of_set != "eval":  # the parent calls figures of all sets the same
            logs.update({f"{of_set}_{name}": value for name, value in figures.items()})

    def _store_sample(self, group: dict[str, torch.Tensor], scores: torch.Tensor) -> None:
        """Keeps the batch's first example for the report."""
        if self.samples is None or not self.model.training or not self.is_world_process_zero():
            return
        if not self.samples.wants(self.state.global_step, self.state.max_steps):
            return
        record = self.train_records[int(group["index"][0])]
        self.samples.add(self.state.global_step, self.sample_of(record, scores[0].tolist()))

    def sample_of(self, record: PreferenceRecord, scores: Sequence[float]) -> SampleGroup:
        """A record as the report shows it: which response people chose, and whether the model agrees."""
        pairs = ranked_pairs(record.human_ranking)
        agreed = sum(scores[better] > scores[worse] for better, worse in pairs)
        words = "the chosen response scores higher" if agreed else "the chosen response does not score higher"
        if len(pairs) != 1:
            words = f"{agreed} of {len(pairs)} pairs in people's order"
        best = min(record.human_ranking)
        return SampleGroup(
            prompt=reward_messages(record.prompt(), len(record.images), "", self.reward_config.system_prompt)[:-1],
            images=record.images,
            completions=record.response,
            scores=[
                {"score": score, "rank by people": rank}
                for score, rank in zip(scores, record.human_ranking, strict=False)
            ],
            marks=["chosen" if rank == best else "rejected" for rank in record.human_ranking],
            verdict=(agreed == len(pairs), words),
        )

    def samples_of(self, records: Sequence[PreferenceRecord]) -> list[SampleGroup]:
        """The same of records that are scored now, on this process alone."""
        batch = self.data_collator([{"index": 0, "record": record} for record in records])
        rows = batch["rows"]  # (B, G)
        inputs = {name: value.to(self.args.device) for name, value in batch.items() if name not in GROUP_KEYS}
        scores = self.accelerator.unwrap_model(self.model)(**inputs).logits.squeeze(1).float().cpu()
        return [
            self.sample_of(record, scores[places[places >= 0]].tolist())
            for record, places in zip(records, rows, strict=True)
        ]

    def fixed_samples(self) -> FixedSamples:
        """The same few preferences at every sampled step."""
        train, evaluation = self.records
        if isinstance(evaluation, dict):
            evaluation = next(iter(evaluation.values()), None)
        source: Source = "training data" if evaluation is None else "held out"
        few = chosen(train if evaluation is None else evaluation, self.args.seed)
        return FixedSamples(self, self.kept_samples, lambda step: {source: self.samples_of(few)})

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The parent's; adapters get the reward model's configuration beside them, which PEFT does not store."""
        super()._save(output_dir, state_dict)
        if hasattr(self.accelerator.unwrap_model(self.model), "peft_config"):
            self.reward_config.save_pretrained(output_dir or self.args.output_dir)

    def extra_state(self) -> dict[str, Any]:
        return {"tokens": self._total_train_tokens, "sums": self._sums["train"]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._total_train_tokens = state["tokens"]
        self._sums["train"] = state["sums"]


# -- the script -------------------------------------------------------------------------------------------------------


def reward_adapters(model_args: Any, freeze_vision_tower: bool, revision: str | None = None) -> Any:
    """The recipe's adapters, or `None`.

    Args:
        revision: of the backbone.
    """
    config = lora_config(model_args, freeze_vision_tower, revision)
    return None if config is None else with_head(config)


def check_reward_adapters(config: Any, args: RewardConfig, model_args: Any) -> None:
    """Raises `RecipeError` if the recipe puts adapters on what the model (`None`: out of reach) does not have."""
    if base_of_adapters(model_args.model_name_or_path, hub_arguments(args, model_args)) is None:
        adapters = reward_adapters(model_args, args.freeze_vision_tower)
        try:
            check_adapter_targets(adapters, config, lambda known: reward_model_of(known, args.model_settings()))
        except ValueError as error:
            raise error if isinstance(error, RecipeError) else RecipeError(f"model_name_or_path: {error}") from error


def main(argv: list[str] | None = None) -> None:
    with readable_errors():
        script, args, model_args, recipe = parse_recipe((PreferenceArguments, RewardConfig, ModelConfig), argv)
        check_set_up("reward", script, args, model_args)
        hold_output(script, args)

        # Data
        if script.load_weights_only:
            model_args.model_name_or_path, args.resume_from_checkpoint = args.resume_from_checkpoint, None
        hub = hub_arguments(args, model_args)
        model = inspect_model(model_args.model_name_or_path, args, not script.validate_only, hub)
        check_model_settings(args, model)
        use_chat_template(args, model)
        check_reward_adapters(model.config, args, model_args)
        system_prompt = args.system_prompt or getattr(model.config, "system_prompt", None)

        def load(source: str, split: str) -> tuple[list[PreferenceRecord], Lengths | None]:
            return load_checked_preferences(script, split, model, system_prompt, args, source)

        train_records, lengths = load(script.dataset_name, script.dataset_train_split)
        eval_records = None
        if args.eval_strategy != "no":
            train_records, eval_records = evaluation_rows(
                script, args.seed, train_records, lambda *place: load(*place)[0], preference_content
            )
        check_enough_rows(len(train_records), args, script.dataset_name)
        if lengths is not None:
            widest = max(len(record.response) for record in train_records) if args.group_responses else 2
            demand = replace(
                base_load(script, args, model_args, lengths.prompts),
                rows=args.per_device_train_batch_size * widest,
                completion_tokens=lengths.response,
                generated_rows=0,
            )
            say_estimate(model.config.backbone() if hasattr(model.config, "backbone") else model.config, demand)
        if script.validate_only:
            say("valid")
            return
        data = {"train": train_records, "evaluation": eval_records}
        if script.own_folder:
            record = partial(origin_of, "Reward", script, args, model_args, data)
            args.output_dir = own_folder(args.output_dir, script.resume != "false", record)
        start = begin_run("Reward", script, args, model_args, data)
        if start is None:
            return

        # Trainer
        name = model_args.model_name_or_path
        options = model_init_kwargs(args, model_args) | _quantised(get_quantization_config(model_args))
        try:
            policy = load_reward_policy(name, args, options)
        except (OSError, ValueError) as error:
            raise RecipeError(f"model_name_or_path: '{name}' cannot be loaded: {error}") from error
        adapters = None
        if not hasattr(policy, "peft_config"):
            adapters = reward_adapters(model_args, args.freeze_vision_tower, hub["revision"])
        trainer = RewardTrainer(
            policy,
            args,
            train_dataset=train_records,
            eval_dataset=eval_records,
            processing_class=model.processor,
            samples=SampleLog(args.output_dir),
            checked=True,
            peft_config=adapters,
        )
        trainer.add_callback(trainer.fixed_samples())

        # Train, save, report
        info = RunInfo(
            method="Reward",
            command=command_line(),
            recipe=recipe.text,
            dataset=script.dataset_name,
            base_model=name,
            kind="reward",
        )
        train_and_record(trainer, info, recipe, start)


if __name__ == "__main__":
    main()
