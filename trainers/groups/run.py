"""What the scripts that learn from stored groups have in common: the policy at spec, its groups, the run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from models.hub_revisions import hub_options
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import HeldOutId, RewardTable, StoredGroup, load_stored_groups
from trainers.groups.policies import PolicySpec, prepare_groups
from trainers.groups.selectors import selector_spec
from trainers.groups.vlm_policy import VLMPolicy
from trainers.losses import groups_without_contrast
from trainers.mixins.enough_rows import check_enough_rows
from trainers.report.samples import SampleLog
from trainers.run.console import say
from trainers.run.resuming import begin_run
from trainers.run.script import describe_rewards, train_and_record
from trainers.setup.evaluation_rows import evaluation_rows, prompt_content
from trainers.setup.memory import MemoryDemand, base_load, say_estimate
from trainers.setup.model import DEFAULT_REVISION, base_of_adapters, load_policy, model_init_kwargs, reference_hub
from trainers.setup.model_settings import checked_model
from trainers.setup.recipes import Recipe, RecipeError
from trainers.setup.task_data import check_lengths, count_tokens

# -- vision-language models -------------------------------------------------------------------------------------------


def vlm_spec(script: GroupArguments, args: Any, model_args: Any) -> PolicySpec:
    """The VLM that a recipe names."""
    name = model_args.model_name_or_path
    if name is None:
        raise RecipeError("model_name_or_path: policy: vlm needs a model")
    model = checked_model(script, args, model_args)
    policy = None if model.processor is None else VLMPolicy(model.processor, model.bounds)
    args.model_init_kwargs = model_init_kwargs(args, model_args)
    return PolicySpec(
        policy,
        load=lambda: load_policy(args, model_args),
        by_length=False,
        base_model=name,
        query_content=lambda group: prompt_content(group.columns),
        processor=model.processor,
        model=model,
    )


SPECS = {"selector": selector_spec, "vlm": vlm_spec}
"""What makes the spec of each kind of policy that a recipe may ask for."""


def _say_prompts(
    script: GroupArguments, args: Any, model_args: Any, spec: PolicySpec, groups: Sequence[StoredGroup]
) -> None:
    """Counts the prompts' tokens, checks that they fit, and prints the memory estimate."""
    rows = [{"id": group.id, **group.columns} for group in groups]
    counts = count_tokens(rows, script.dataset_name, spec.model.bounds, spec.processor)
    check_lengths(counts, script.dataset_name, args.max_prompt_length, "max_prompt_length")
    completions = [candidate.completion for group in groups for candidate in group.candidates]
    load: MemoryDemand = replace(
        base_load(script, args, model_args, counts),
        rows=args.per_device_train_batch_size * max(len(group.candidates) for group in groups),
        completion_tokens=max(len(text.encode()) for text in completions) // 3 + 1,
        generated_rows=0,
    )
    say_estimate(spec.model.config, load)


def reference_loader(script: GroupArguments, args: Any, model_args: Any) -> Callable[[str], nn.Module]:
    """What loads a reference policy by its path, as the policy itself is loaded.

    Raises:
        RecipeError: the recipe's `reference_model` is out of reach (unless it is only validated).
    """
    options = model_init_kwargs(args, model_args) | reference_hub(args, model_args)
    if args.reference_model is not None and not script.validate_only:
        from transformers import AutoConfig

        try:
            base = base_of_adapters(args.reference_model, options)
            name, revision = (
                (args.reference_model, options["revision"]) if base is None else (base.name, base.revision)
            )
            AutoConfig.from_pretrained(name, **hub_options(options) | {"revision": revision})
        except Exception as error:  # the Hub's client raises many kinds
            raise RecipeError(f"reference_model: '{args.reference_model}' cannot be loaded: {error}") from error

    def load(path: str) -> nn.Module:
        if script.policy == "selector":
            from models.selectors.load import load_encoding_selector, load_selector

            try:
                load_it = load_selector if script.query_data is None else load_encoding_selector
                return load_it(path, options["revision"])
            except ValueError as error:
                raise RecipeError(f"reference_model: {error}") from error
        args.model_init_kwargs = dict(options)
        named = replace(model_args, model_name_or_path=path, model_revision=DEFAULT_REVISION, use_peft=False)
        return load_policy(args, named)

    return load


# -- the groups -------------------------------------------------------------------------------------------------------


def load_groups_and_held_out(
    script: GroupArguments, args: Any, spec: PolicySpec
) -> tuple[list[StoredGroup], list[StoredGroup] | None]:
    """Groups to learn from, and those to evaluate on, `None` if the recipe asks for none.

    Raises:
        RecipeError: the evaluation would be on queries that are trained on.
    """
    groups = load_stored_groups(script, script.dataset_train_split, spec.by_length)
    if args.eval_strategy == "no":
        return groups, None

    def load(source: str, split: str) -> list[StoredGroup]:
        own = {
            "pools": script.eval_pools or script.pools,
            "query_table": script.eval_query_table or script.query_table,
        }
        held_out = load_stored_groups(replace(script, dataset_name=source, **own), split, spec.by_length)
        if script.eval_query_table is None:
            return held_out
        return [replace(group, id=HeldOutId(group.id)) for group in held_out]

    return evaluation_rows(script, args.seed, groups, load, spec.query_content)


# -- the run ----------------------------------------------------------------------------------------------------------


def _say_groups(split: str, groups: Sequence[StoredGroup]) -> None:
    table = RewardTable(groups)
    flat = groups_without_contrast(table.rewards, table.valid).float().mean().item()
    count = sum(len(group.candidates) for group in groups)
    say(f"{split}: {len(groups)} groups, {count} candidates; in {100 * flat:.1f}% of the groups all rewards are equal")


def train_on_groups(
    trainer_class: type,
    method: str,
    script: GroupArguments,
    args: Any,
    model_args: Any,
    recipe: Recipe,
    **trainer_options: Any,
) -> None:
    """Reads the groups, checks everything, trains, saves and reports.

    Args:
        trainer_class: `RCETrainer` or one that is made from it.
        method: for the report.
        trainer_options: further arguments of the trainer.
    """
    # Policy and data
    spec = SPECS[script.policy](script, args, model_args)
    train_groups, eval_groups = load_groups_and_held_out(script, args, spec)
    check_enough_rows(len(train_groups), args, script.dataset_name)
    all_groups = [train_groups] if eval_groups is None else [train_groups, eval_groups]
    for split, groups in zip((script.dataset_train_split, script.dataset_test_split), all_groups, strict=False):
        _say_groups(split, groups)
    if spec.model is not None:
        _say_prompts(script, args, model_args, spec, train_groups)
    looked_up = script.validate_only or spec.model is None  # of a selector, before it is loaded
    for groups in all_groups if looked_up and spec.policy is not None else ():
        prepare_groups(spec.policy, groups)
    rows = {"train": train_groups, "evaluation": eval_groups, **spec.records}
    start = begin_run(method, script, args, model_args, rows)
    if start is None:
        return

    # Trainer
    trainer = trainer_class(
        spec.load(),
        args,
        train_groups,
        eval_groups,
        spec.processor,
        policy=spec.policy,
        samples=SampleLog(args.output_dir),
        **trainer_options,
    )
    trainer.add_callback(trainer.fixed_samples())

    # Train, save, report
    rewards = describe_rewards(script.reward_funcs, script.reward_weights) if script.reward_funcs else []
    rewards = rewards or [script.reward_field or "reward, as stored"]
    train_and_record(trainer, start, recipe, script.dataset_name, spec.base_model, rewards)
