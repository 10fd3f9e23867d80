"""The checks of a GRPO recipe: one rollout as a training step makes it, and every check of both its sides."""

from collections.abc import Iterator, Sequence
from typing import Any

from trl import ModelConfig

from models.families.loading import image_token_ids
from rewards.registry import build_rewards
from rewards.scoring.columns import check_columns
from trainers.diagnosis import causes
from trainers.diagnosis.completions import check_completions
from trainers.diagnosis.differences import check_log_probs
from trainers.diagnosis.explanations import checkpoint_folders, other_variants
from trainers.diagnosis.findings import Finding, wrong
from trainers.diagnosis.forward_passes import check_reference, check_repeatable
from trainers.diagnosis.images import check_images
from trainers.diagnosis.log_probs import of_update
from trainers.diagnosis.memory import check_memory
from trainers.diagnosis.methods.set_up import isolated_set_up
from trainers.diagnosis.prompts import check_prompts
from trainers.diagnosis.rewards import check_rewards
from trainers.diagnosis.rollout import Backend, Observed, Sampling, observe
from trainers.diagnosis.sampling_options import check_ids, check_options
from trainers.grpo import GRPOConfig, GRPOScriptArguments, GRPOTrainer
from trainers.setup.model import policy_arguments
from trainers.setup.model_settings import checked_model
from trainers.setup.task_data import load_task_rows, to_dataset
from trainers.vllm_engine.checks import check_vllm
from trainers.vllm_engine.prompts import PromptMismatch


def diagnose_grpo(argv: Sequence[str], backend: Backend, limit: int) -> Iterator[Finding]:
    """Everything that is found of a recipe.

    Args:
        argv: a command line of `trainers/grpo.py`.
        backend: where completions come from.
        limit: rows that are rolled out.

    Raises:
        UserError: what is wrong with the recipe, its data or model.
    """
    classes = (GRPOScriptArguments, GRPOConfig, ModelConfig)
    with isolated_set_up("GRPO", classes, argv) as (script, args, model_args, run):
        check_vllm(script, args, model_args)
        rows = backend.rows(load_task_rows(script, script.dataset_train_split, check_files=False), limit)
        args.num_generations = args.num_generations_eval = backend.size(args.num_generations)
        trainer = load_trainer(script, args, model_args, rows)
        trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)  # as a run does before its first step
        move_temperature(trainer, backend.step())
        opened = [dict(trainer.train_dataset[number]) for number in range(len(rows))]
        try:
            observed = observe(trainer, backend, opened, sampling_of(trainer))
        except PromptMismatch as error:  # vLLM's engine looks at its prompts by itself
            yield wrong("prompt tokens of sampler and update", str(error), "all equal", causes.PIXEL_BOUNDS)
            return
        places = [*backend.places(), run, model_args.model_name_or_path]
        folders = checkpoint_folders(places, model_args.model_name_or_path)
        yield from backend.findings(trainer.temperature)
        yield from diagnose(trainer, observed, folders)
    recipe = {
        "reward_funcs": script.reward_funcs,
        "reward_weights": args.reward_weights,
        "agents": script.agents,
        "dataset_name": script.dataset_name,
    }
    yield from check_rewards(rows, recipe)


def load_trainer(script: Any, args: Any, model_args: Any, rows: Sequence[dict]) -> GRPOTrainer:
    """The trainer of a recipe, of some rows, as `trainers/grpo.py` makes it, but for the limit that stops a run."""
    model = checked_model(script, args, model_args)
    args.remove_unused_columns = False  # rows are looked up when they are needed
    args.max_sampling_difference = None  # which would stop where the table goes on
    rewards = build_rewards(script.reward_funcs, script.agents)
    check_columns(rewards, rows, script.dataset_name)
    data = to_dataset(rows, model.bounds)
    policy = policy_arguments(args, model_args)
    return GRPOTrainer(reward_funcs=rewards, args=args, train_dataset=data, processing_class=model.processor, **policy)


def move_temperature(trainer: GRPOTrainer, step: int | None) -> None:
    """Gives a trainer the temperature that a linear schedule has at a step."""
    if step and trainer.args.temperature_schedule == "linear" and trainer.args.max_steps > 0:
        trainer.state.global_step, trainer.state.max_steps = step, trainer.args.max_steps
        trainer._set_temperature()


def sampling_of(trainer: GRPOTrainer) -> Sampling:
    """How a trainer says that tokens are drawn."""
    given = trainer.args.generation_kwargs or {}
    suppressed = {*image_token_ids(trainer.processing_class), *(given.get("suppress_tokens") or [])}
    return Sampling(
        temperature=trainer.temperature,
        top_k=max(given.get("top_k", trainer.top_k) or 0, 0),
        top_p=given.get("top_p", trainer.top_p),
        min_p=given.get("min_p", trainer.min_p) or 0.0,
        repetition_penalty=given.get("repetition_penalty", trainer.repetition_penalty),
        suppressed=tuple(sorted(suppressed)),
    )


def unmodelled(findings: Sequence[Finding]) -> list[Finding]:
    """Those of options whose distribution is not computed."""
    return [finding for finding in findings if finding.cause is causes.OPTION]


def diagnose(trainer: GRPOTrainer, observed: Observed, folders: Sequence[str] = ()) -> Iterator[Finding]:
    """Every check of one rollout.

    Args:
        folders: of weights that may have drawn the samples.
    """
    options = dict(trainer.chat_template_kwargs or {})
    trainer.model.train()
    update = of_update(trainer, observed)
    read = [
        *check_prompts(observed, trainer.processing_class, **options),
        *check_images(observed, trainer.processing_class, **options),
    ]
    options_said = list(check_options(trainer.args, "the recipe"))
    yield from (*options_said, *check_ids(trainer), *read)
    yield from check_completions(observed, trainer, **options)
    repeatable = check_repeatable(trainer, observed, update)
    known = [finding.cause for finding in (*unmodelled(options_said), *read, repeatable) if finding.verdict == "wrong"]
    yield from check_log_probs(
        trainer, observed, update, other_variants(trainer, folders), known[0] if known else None
    )
    yield repeatable
    yield from check_reference(trainer, observed)
    yield check_memory(trainer, observed)
