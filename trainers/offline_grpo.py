"""Offline GRPO: clipped policy gradient on stored candidates, held near a reference policy by a KL penalty.

    vlm-posttrain offline-grpo --config selector_offline_grpo
    accelerate launch trainers/offline_grpo.py --config recipes/selector_offline_grpo.yaml

Candidates are scored once by the policy as it is when this stage starts: these log-probabilities are the reference,
and, refreshed every few epochs, the old policy of the ratio. No second model is kept in memory. See
docs/rce_and_offline_grpo.md.
"""

if __name__ == "__main__":  # --help and most errors come before the heavy imports
    from trainers.setup.help import before_imports

    before_imports(__file__, "offline GRPO", "GroupArguments", "OfflineGRPOConfig", "ModelConfig")

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm
from transformers import TrainerCallback
from trl import ModelConfig

from data.io.records import atomic_write
from models.generation import evaluating
from trainers.groups.arguments import GroupArguments
from trainers.groups.policies import GroupLogProbs
from trainers.losses import (
    GRPOTerms,
    ends_of_group,
    group_advantages,
    groups_without_contrast,
    grpo_loss,
    normalise_rewards,
    per_step_or_sequence,
)
from trainers.mixins.adaptive_kl import AdaptiveKL, AdaptiveKLArguments
from trainers.mixins.image_bounds import hub_of
from trainers.rce import GroupConfig, RCETrainer
from trainers.run.origin import changes, read_run
from trainers.run.script import readable_errors, set_up
from trainers.schedules import Curriculum
from trainers.setup.default_config import config_or_default
from trainers.setup.model import init_kwargs
from trainers.setup.recipes import RecipeError

STORE_FILE = "log_probs.safetensors"
DROPOUT_ATTRIBUTES = ("dropout", "attention_dropout", "dropout_p", "attn_dropout")


@dataclass
class OfflineGRPOConfig(AdaptiveKLArguments, GroupConfig):
    """Settings of the clipped policy gradient on stored groups."""

    ratio_level: Literal["sequence", "step"] = field(
        default="sequence",
        metadata={
            "help": "Probability ratios of whole candidates, or of each of their steps. A VLM's candidate counts by "
            "the mean over its tokens."
        },
    )
    clip_epsilon: float = field(default=0.2, metadata={"help": "How far below 1 a ratio is followed."})
    clip_epsilon_high: float | None = field(
        default=None, metadata={"help": "How far above 1; by default as clip_epsilon."}
    )
    advantage_std_floor: float = field(
        default=0.1, metadata={"help": "Smallest standard deviation of a group's rewards to divide by."}
    )
    advantage_clip: float = field(default=5.0, metadata={"help": "Largest absolute advantage."})
    beta: float = field(default=0.15, metadata={"help": "Weight of the KL to the reference; where it starts."})
    adaptive_kl: bool = field(
        default=True, metadata={"help": "Change `beta` after each optimizer step to hold the KL within its target."}
    )
    reference_model: str | None = field(
        default=None, metadata={"help": "Policy that the KL is taken to; by default the one this stage starts from."}
    )
    reference_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of `reference_model`; by default that of the policy where both have "
                  "the same name, else the main branch."},
    )  # fmt: skip
    old_policy_epochs: int = field(
        default=1,
        metadata={"help": "Epochs after which the old policy of the ratio becomes the current one; 0: never."},
    )
    curriculum_best_and_worst: int | None = field(
        default=None,
        metadata={"help": "So many best and so many worst candidates of a group count in the first part of training."},
    )
    curriculum_top_k: int | None = field(
        default=None, metadata={"help": "The earlier name of curriculum_best_and_worst."}
    )
    curriculum_share: float = field(
        default=0.3, metadata={"help": "Share of the optimizer steps that are the first part of training."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.reward_normalization not in ("raw", "rank"):
            raise ValueError(
                "reward_normalization: advantages are z-scores already; expected 'raw' or 'rank', "
                f"found '{self.reward_normalization}'"
            )
        if self.reference_revision is not None and self.reference_model is None:
            raise ValueError("reference_revision: of a reference_model, and the recipe has none")
        if self.curriculum_top_k is not None:
            if self.curriculum_best_and_worst not in (None, self.curriculum_top_k):
                raise ValueError("curriculum_top_k: the earlier name of curriculum_best_and_worst, which is set too")
            self.curriculum_best_and_worst, self.curriculum_top_k = self.curriculum_top_k, None
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor: a policy gradient has no labels to smooth")


class StoredLogProbs:
    """Log-probabilities (G, T) of every group of a run, under a policy as it once was."""

    def __init__(self, rows: Sequence[torch.Tensor]):
        self.rows = list(rows)

    def batch(self, index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """(B, G, T), padded as `like`, of groups `index` (B,)."""
        placed = like.new_zeros(like.shape)
        for row, group in enumerate(index.tolist()):
            stored = self.rows[group]
            placed[row, : stored.shape[0], : stored.shape[1]] = stored.to(like.device)
        return placed

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """As two tensors, for a file."""
        shapes = torch.tensor([list(row.shape) for row in self.rows]).view(-1, 2)
        flat = torch.cat([row.flatten() for row in self.rows]) if self.rows else torch.zeros(0)
        return {f"{name}.shapes": shapes, f"{name}.values": flat}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], name: str) -> "StoredLogProbs":
        shapes = tensors[f"{name}.shapes"].tolist()
        flat = tensors[f"{name}.values"].split([groups * steps for groups, steps in shapes])
        return cls([values.view(*shape) for values, shape in zip(flat, shapes, strict=True)])


class _Epochs(TrainerCallback):
    """Tells the trainer when an epoch begins."""

    def __init__(self, trainer: "OfflineGRPOTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.refresh(int(state.epoch or 0))


def _reference_options(model: nn.Module | str, args: OfflineGRPOConfig) -> dict[str, Any]:
    """Options with which the reference is loaded: those of the policy, but at the revision of its own."""
    name = model if isinstance(model, str) else model.config.name_or_path
    options = hub_of(args) | init_kwargs(args)
    same = options.get("revision") if args.reference_model == name else None
    return options | {"revision": args.reference_revision or same}


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout of a model to 0, so that the same policy scores a candidate the same in training."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in DROPOUT_ATTRIBUTES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


class OfflineGRPOTrainer(AdaptiveKL, RCETrainer):
    """`RCETrainer` whose loss is the clipped policy gradient with a KL penalty, without dropout.

    Args:
        load_reference: loads `args.reference_model`; by default as the policy is loaded.
    """

    config_class = OfflineGRPOConfig
    figure_names = (*RCETrainer.figure_names, "kl", "ratio")

    def __init__(
        self,
        model: nn.Module | str,
        args: transformers.TrainingArguments | None = None,
        *others: Any,
        load_reference: Callable[[str], nn.Module] | None = None,
        **kwargs: Any,
    ):
        args = config_or_default(args, self.config_class, model, "OfflineGRPO")
        options = _reference_options(model, args)
        super().__init__(model, args, *others, **kwargs)
        disable_dropout(self.model)
        self.add_callback(_Epochs(self))
        self.beta = args.beta
        self.curriculum = Curriculum(args.curriculum_best_and_worst, args.curriculum_share)
        self._load_reference = load_reference or partial(self.policy.load, args=self.args, options=options)
        self._old: Any = None  # `StoredLogProbs` of the groups trained on
        self._old_round = -1
        self._reference: Any = None  # the same of these, and of those evaluated on

    # -- old and reference policy -------------------------------------------------------------------------------------

    def refresh(self, epoch: int) -> None:
        """Scores all groups anew where an epoch begins that the recipe gives a new old policy."""
        every = self.args.old_policy_epochs
        number = epoch // every if every else 0
        if self._reference is None:
            self._reference = self._start_of_stage()
        elif number != self._old_round:
            self._old = self._score_all(self.model_wrapped, self.train_dataset, "old policy")
        self._old_round = number

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The parent's; before any training, the policy is the one that training starts from."""
        if self._reference is None:
            self._reference = self._start_of_stage()
        return super().evaluate(*args, **kwargs)

    def _start_of_stage(self) -> StoredLogProbs:
        """Scores everything under the policy that training starts from, and under the reference if it is another."""
        items = [*self.train_dataset, *(self.eval_dataset or ())]
        start = self._score_all(self.model_wrapped, items, "policy at the start")
        self._old = StoredLogProbs(start.rows[: len(self.train_dataset)])
        if self.args.reference_model is None:
            return start
        reference = self._load_reference(self.args.reference_model).to(self.args.device)
        scores = self._score_all(reference, items, "reference policy")
        del reference
        return scores

    def _score_all(self, model: nn.Module, items: Sequence[dict[str, Any]], what: str) -> StoredLogProbs:
        """Log-probabilities of all candidates; the processes share the work, and all get all of it."""
        size = self.args.per_device_eval_batch_size
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        rounds = -(-len(batches) // processes)
        mine: list[tuple[int, list[torch.Tensor]]] = []
        shown = tqdm(
            range(rounds), desc=f"scoring candidates: {what}", delay=2, disable=bool(process) or self.args.disable_tqdm
        )
        for number in shown:  # every process takes part in every round, as ZeRO-3 needs
            place = number * processes + process
            rows = self._score(model, batches[min(place, len(batches) - 1)])
            if place < len(batches):
                mine.append((place, rows))
        scored = dict(gather_object(mine))
        return StoredLogProbs([row for place in range(len(batches)) for row in scored[place]])

    @torch.no_grad()
    def _score(self, model: nn.Module, items: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
        """(G, T) of each group, on the CPU, without padding."""
        batch = self._prepare_inputs(self.policy.collate(items))
        with evaluating(model), self.compute_loss_context_manager():
            scored = self.policy.group_log_probs(model, batch)
        sizes = scored.mask.any(dim=2).sum(dim=1).tolist()
        steps = scored.mask.sum(dim=2).amax(dim=1).tolist()
        log_probs = scored.log_probs.float().cpu()
        return [
            log_probs[row, :count, :length].clone()
            for row, (count, length) in enumerate(zip(sizes, steps, strict=True))
        ]

    # -- loss ---------------------------------------------------------------------------------------------------------

    def group_losses(self, scored: GroupLogProbs, index: torch.Tensor) -> torch.Tensor:
        """(B,): the clipped policy gradient of each group. In evaluation, the old policy is the reference."""
        rewards, valid = self.groups.rows(index, scored.mask.shape[1])
        advantages = self._advantages(rewards, valid)  # (B, G)
        counted = self._counted(rewards, valid) if self.model.training else valid
        terms = self._terms(scored, index, advantages, counted)
        if self.model.training:
            self.note(
                policy_loss=terms.policy,
                kl=terms.kl,
                ratio=terms.ratio,
                clip_fraction=terms.clipped,
                frac_reward_zero_std=groups_without_contrast(rewards, valid).float(),
                **_advantage_figures(advantages, counted),
            )
            self._figures["beta"].append(self.beta)
            self.note_kl(self._figures["kl"][-1])
        return terms.loss

    def _terms(
        self, scored: GroupLogProbs, index: torch.Tensor, advantages: torch.Tensor, counted: torch.Tensor
    ) -> GRPOTerms:
        """The loss of groups `index` (B,) and its parts, (B,) each.

        Args:
            advantages, counted: (B, G).
        """
        args = self.args
        reference = self._reference.batch(index, scored.log_probs)
        old = self._old.batch(index, scored.log_probs) if self.model.training else reference
        mean = self.policy.mean_over_steps
        units = [
            per_step_or_sequence(x, scored.mask, args.ratio_level, mean) for x in (scored.log_probs, old, reference)
        ]
        (log_probs, mask), (old, _), (reference, _) = units
        high = args.clip_epsilon if args.clip_epsilon_high is None else args.clip_epsilon_high
        return grpo_loss(log_probs, old, reference, advantages, mask, counted, args.clip_epsilon, high, self.beta)

    @torch.no_grad()
    def group_figures(self, scored: GroupLogProbs, index: torch.Tensor) -> torch.Tensor:
        """(B, 4) in evaluation: the parent's, the KL to the reference, and the ratio to it. In training, the parent's
        alone, because `group_losses` notes the others.
        """
        figures = super().group_figures(scored, index)
        if self.model.training:
            return figures
        rewards, valid = self.groups.rows(index, scored.mask.shape[1])
        terms = self._terms(scored, index, self._advantages(rewards, valid), valid)
        return torch.cat([figures, torch.stack([terms.kl, terms.ratio], dim=1)], dim=1)

    def _advantages(self, rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(B, G), within each group."""
        values = normalise_rewards(rewards, valid, self.args.reward_normalization)
        floor, clip = self.args.advantage_std_floor, self.args.advantage_clip
        return group_advantages(values, valid, std_floor=floor, clip=clip, epsilon=0.0)

    def preferences(self, index: torch.Tensor, size: int) -> tuple[str, torch.Tensor]:
        return "advantage", self._advantages(*self.groups.rows(index, size))

    def _counted(self, rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(B, G): the candidates that take part; their advantages are those within the whole group."""
        k = self.curriculum.k_at(self.state.global_step, self.state.max_steps)
        return valid if k is None else ends_of_group(rewards, valid, k)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), **self.kl_state(), "old_round": self._old_round}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if "old_round" in state:  # otherwise `load_process_state` says what is wrong
            super().load_extra_state(state)
            self.load_kl_state(state)
            self._old_round = state["old_round"]

    def save_process_state(self, folder: Path) -> None:
        """The log-probabilities of old and reference policy, once a machine: they cannot be computed again later."""
        if not self.accelerator.is_local_main_process:
            return
        from safetensors.torch import save

        content = save({**self._old.tensors("old"), **self._reference.tensors("reference")})
        with atomic_write(folder / STORE_FILE, "wb") as file:
            file.write(content)

    def load_process_state(self, folder: Path) -> None:
        """Reads them.

        Raises:
            RecipeError: the checkpoint has none, or those of other groups or of another reference.
        """
        from safetensors.torch import load_file

        if not (folder / STORE_FILE).is_file():
            raise RecipeError(f"resume_from_checkpoint: {folder} has no {STORE_FILE}: another trainer wrote it")
        self._check_scored(folder)
        tensors = load_file(folder / STORE_FILE)
        self._old = StoredLogProbs.from_tensors(tensors, "old")
        self._reference = StoredLogProbs.from_tensors(tensors, "reference")
        if len(self._old.rows) != len(self.train_dataset):
            found = f"{len(self._old.rows)} groups, and {len(self.train_dataset)} are trained on"
            raise RecipeError(f"resume_from_checkpoint: {folder} has log-probabilities of {found}")

    def _check_scored(self, folder: Path) -> None:
        """Raises RecipeError where the stored log-probabilities are not those of this run's groups and reference."""
        stored = read_run(folder)
        if stored is None or self.origin is None:
            return
        found = changes(stored, self.origin)
        scored = [name for name in found if name.endswith("(data)") or name == "reference_model"]
        if scored:
            raise RecipeError(
                f"{folder} has log-probabilities of other candidates or of another reference ({scored[0]}: "
                f"{found[scored[0]]}); start a new run in another output_dir"
            )


def _advantage_figures(advantages: torch.Tensor, counted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean, mean square root deviation and largest size of the advantages that take part."""
    present = advantages.masked_fill(~counted, torch.nan)
    mean = present.nanmean(dim=1)
    spread = (present - mean.unsqueeze(1)).square().nanmean(dim=1).sqrt()
    return {
        "advantage_mean": mean,
        "advantage_std": spread,
        "advantage_max": advantages.abs().masked_fill(~counted, 0.0).amax(dim=1),
    }


# -- the script -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    from trainers.groups.run import reference_loader, train_on_groups

    with readable_errors():
        script, args, model_args, recipe = set_up(
            "offline GRPO", (GroupArguments, OfflineGRPOConfig, ModelConfig), argv
        )
        load_reference = reference_loader(script, args, model_args)
        train_on_groups(
            OfflineGRPOTrainer, "offline GRPO", script, args, model_args, recipe, load_reference=load_reference
        )


if __name__ == "__main__":
    main()
