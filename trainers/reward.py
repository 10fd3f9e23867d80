"""Reward model: a vision-language model with a score head learns which of several responses people prefer.

    vlm-posttrain reward --config reward_model
    accelerate launch trainers/reward.py --config recipes/reward_model.yaml

Runs TRL's RewardTrainer, with images. See docs/reward_model.md.
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "reward", "PreferenceArguments", "RewardConfig", "ModelConfig")

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import trl
from torch import nn
from transformers import ProcessorMixin, TrainerCallback
from transformers.activations import ACT2FN
from trl import ModelConfig

from data.cli.suggestions import closest
from data.preferences import PreferenceRecord
from models.families.loading import image_reader
from models.shared_prefix.sharing import SharedPrefix
from trainers.losses import PREFERENCE_LOSSES, centring_penalty, preference_loss
from trainers.mixins.checkpoints import CompleteCheckpoints
from trainers.mixins.enough_rows import TrainsSomething, check_enough_rows
from trainers.mixins.image_bounds import PromptArguments, hub_of, processor_of
from trainers.mixins.non_finite import FiniteTraining
from trainers.mixins.shared_prompts import SharingArguments
from trainers.mixins.vision_tower import TrainsVisionTower, VisionTowerArguments
from trainers.preferences.data import (
    GROUP_KEYS,
    Lengths,
    PreferenceArguments,
    PreferenceCollator,
    Preferences,
    as_records,
    check_records,
    evaluation_examples,
    evaluation_records,
    examples,
    load_preferences_and_held_out,
    preference_dataset,
)
from trainers.preferences.figures import add_rows, preference_figures, row_sums
from trainers.preferences.model import check_reward_model, load_reward_policy, policy_and_adapters, with_head
from trainers.report.diagnosis import PreferenceDiagnosis
from trainers.report.fixed_samples import FixedSamples, chosen
from trainers.report.preference_samples import preference_sample
from trainers.report.publishing import PublishedRun
from trainers.report.samples import SampleGroup, SampleLog, Source
from trainers.run.early_stopping import EarlyStoppingArguments
from trainers.run.resuming import begin_run
from trainers.run.script import readable_errors, set_up, train_and_record
from trainers.setup.default_config import CheckedSettings, config_or_default
from trainers.setup.memory import base_load, say_estimate
from trainers.setup.model import ModelInfo, init_kwargs
from trainers.setup.model_settings import checked_model

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
    diagnosis_rows: int = field(
        default=200,
        metadata={"help": "Rows of the evaluation whose images are taken away for the report, at most; 0 for none."},
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
                    "name, or make it by models.reward.load.from_backbone(name, args.model_settings())"
                )


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
        train, evaluation = as_records(train_dataset, "train_dataset"), evaluation_records(eval_dataset)
        if not isinstance(processing_class, ProcessorMixin | None):
            found = type(processing_class).__name__
            raise TypeError(f"processing_class: expected the model's processor, which reads images too, found {found}")
        source = model
        if isinstance(model, str):
            quantization = kwargs.pop("quantization_config", None)  # the parent would leave it unread
            model = load_reward_policy(model, args, hub_of(args) | init_kwargs(args), quantization)
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
            evaluation_examples(evaluation, args.group_responses),
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
            model = ModelInfo(self.model.config, self.processing_class, image_reader(self.processing_class))
            check_records(records, name, model, self.args)

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
        columns = row_sums(scores, ranks, valid, self.reward_config.score_min, self.reward_config.score_max) | extra
        table = torch.stack([column.double() for column in columns.values()], dim=1)  # (B, columns)
        sums = self._sums["train" if self.model.training else "eval"]
        add_rows(sums, columns, self.accelerator.gather_for_metrics(table))

    def _count_tokens(self, attention_mask: torch.Tensor) -> None:
        if self.model.training:
            self._total_train_tokens += int(self.accelerator.gather(attention_mask.sum()).sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        figures = preference_figures(self._sums[mode])
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
        """A record as the report shows it, with the scores of its responses."""
        return preference_sample(record, scores, self.reward_config.system_prompt)

    def scores_of(self, records: Sequence[PreferenceRecord]) -> list[list[float]]:
        """Scores of the responses of each record, in one batch, on this process alone."""
        batch = self.data_collator([{"index": 0, "record": record} for record in records])
        rows = batch["rows"]  # (B, G)
        inputs = {name: value.to(self.args.device) for name, value in batch.items() if name not in GROUP_KEYS}
        scores = self.accelerator.unwrap_model(self.model)(**inputs).logits.squeeze(1).float().cpu()
        return [scores[places[places >= 0]].tolist() for places in rows]

    def samples_of(self, records: Sequence[PreferenceRecord]) -> list[SampleGroup]:
        """`sample_of` records that are scored now, on this process alone."""
        return [self.sample_of(*one) for one in zip(records, self.scores_of(records), strict=True)]

    def _held_out(self) -> list[PreferenceRecord] | None:
        """What the run evaluates on; of several sets, the first."""
        evaluation = self.records[1]
        return next(iter(evaluation.values()), None) if isinstance(evaluation, dict) else evaluation

    def fixed_samples(self) -> FixedSamples:
        """The same few preferences at every sampled step."""
        held_out = self._held_out()
        source: Source = "training data" if held_out is None else "held out"
        few = chosen(self.records[0] if held_out is None else held_out, self.args.seed)
        return FixedSamples(self, self.kept_samples, lambda step: {source: self.samples_of(few)})

    def report_callbacks(self) -> list[TrainerCallback]:
        """The parent's, and what the model decides by."""
        return [*super().report_callbacks(), PreferenceDiagnosis(self, self._held_out() or [])]

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


def say_memory(
    script: PreferenceArguments, args: RewardConfig, model_args: Any, config: Any, lengths: Lengths
) -> None:
    """Prints the memory estimate of a model of this configuration."""
    demand = replace(
        base_load(script, args, model_args, lengths.prompts),
        rows=args.per_device_train_batch_size * (lengths.responses if args.group_responses else 2),
        completion_tokens=lengths.response,
        generated_rows=0,
    )
    say_estimate(config.backbone() if hasattr(config, "backbone") else config, demand)


def main(argv: list[str] | None = None) -> None:
    with readable_errors():
        script, args, model_args, recipe = set_up("reward", (PreferenceArguments, RewardConfig, ModelConfig), argv)

        # Data
        if script.load_weights_only:
            model_args.model_name_or_path, args.resume_from_checkpoint = args.resume_from_checkpoint, None
        name = model_args.model_name_or_path
        model = checked_model(script, args, model_args, check_reward_model)
        train_records, eval_records, lengths = load_preferences_and_held_out(script, args, model)
        check_enough_rows(len(train_records), args, script.dataset_name)
        if lengths is not None:
            say_memory(script, args, model_args, model.config, lengths)
        start = begin_run("Reward", script, args, model_args, {"train": train_records, "evaluation": eval_records})
        if start is None:
            return

        # Trainer
        policy, adapters = policy_and_adapters(args, model_args)
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
        for callback in trainer.report_callbacks():
            trainer.add_callback(callback)

        # Train, save, report
        train_and_record(trainer, start, recipe, script.dataset_name, name)


if __name__ == "__main__":
    main()
