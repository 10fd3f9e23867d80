"""What can be found wrong with a set-up before anything is loaded: packages, places, and keys that need each other."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.model_paths import check_model_place
from rewards.registry import check_weights, spec_name
from trainers.setup.evaluation_rows import check_evaluation
from trainers.setup.model import DEFAULT_REVISION, base_of_adapters, hub_arguments
from trainers.setup.recipe_keys import closest_key
from trainers.setup.recipes import DataArguments, RecipeError
from trainers.vllm_engine.versions import INSTALL, check_versions

TRACKERS = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": None}
"""Values of `report_to` whose module has another name, or that need none (transformers' integration_utils)."""
OPTIMIZERS = {
    "galore": "galore_torch",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "apollo": "apollo_torch",
    "stable_adamw": "optimi",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_npu": "torch_npu",
    "adamw_torch_xla": "torch_xla",
}
"""How the name of an optimizer begins -> the module that it needs (transformers.trainer_optimizer)."""
BITSANDBYTES_OPTIMIZERS = ("bnb", "8bit", "paged", "lion", "ademamix")
ATTENTION = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}
"""Values of `attn_implementation` that need a module, beside kernels of the Hub (`owner/name`)."""
DISTRIBUTIONS = {
    "apollo_torch": "apollo-torch",
    "azureml": "azureml-core",
    "flash_attn": "flash-attn",
    "flash_attn_interface": "flash-attn-3",
    "galore_torch": "galore-torch",
    "liger_kernel": "liger-kernel",
    "lomo_optim": "lomo-optim",
    "optimi": "torch-optimi",
}
"""Packages whose name differs from their module's."""

TEMPLATE_FILES = (".jinja", ".j2")
"""What the name of a chat template ends with; TRL takes other names for those of tokenizers with one."""
TRAINER_STATE = "trainer_state.json"
"""What every checkpoint of a trainer holds (`transformers.trainer.TRAINER_STATE_NAME`)."""


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def check_set_up(method: str, script: DataArguments, args: Any, model_args: Any) -> None:
    """Checks what needs neither data nor model.

    Args:
        method: one of `METRICS`.

    Raises:
        RecipeError: a package that is not installed, a folder that cannot be written, an evaluation on nothing or on
            what is trained on, a metric that is not logged.
    """
    check_packages(args, model_args)
    check_precision(args)
    check_output_dir(args.output_dir)
    for key, name in (
        ("model_name_or_path", model_args.model_name_or_path),
        ("reference_model", getattr(args, "reference_model", None)),
    ):
        check_model_folder(key, name)
    check_trained_weights(method, script, args, model_args)
    weights_only = getattr(script, "load_weights_only", False)
    if weights_only and args.resume_from_checkpoint is None:
        raise RecipeError("load_weights_only: resume_from_checkpoint must name the checkpoint")
    if args.resume_from_checkpoint is not None and not weights_only:
        check_checkpoint(Path(args.resume_from_checkpoint))
    if getattr(script, "policy", None) in NOT_OF:
        check_policy_settings(script.policy, args)
    if method == "SFT":
        check_prompts_with_completions(args)
    if method == "GRPO":
        if args.use_vllm:
            check_versions()
            check_weights_can_be_sent(model_args)
            check_vllm_revision(args, model_args)
        check_weights(script.reward_funcs, args.reward_weights)
    check_evaluation(script, method == "factors" or args.eval_strategy != "no")
    check_metric(method, script, args)


# -- packages ---------------------------------------------------------------------------------------------------------


def check_packages(args: Any, model_args: Any) -> None:
    """Raises `RecipeError` for the first key whose package is not installed."""
    for key, value, module in _needed(args, model_args):
        if not is_installed(module):
            package = DISTRIBUTIONS.get(module, module)
            how = f"; in an environment of its own: {INSTALL}" if module == "vllm" else ""
            raise RecipeError(f"{key}: {value} needs the package {package}, which is not installed{how}")


def _needed(args: Any, model_args: Any) -> Iterator[tuple[str, Any, str]]:
    """(key, its value, module) of everything that a set-up needs."""
    for tracker in _trackers(args.report_to):
        module = TRACKERS.get(tracker, tracker)
        if module is not None and not (tracker == "tensorboard" and is_installed("tensorboardX")):
            yield "report_to", tracker, module
    if getattr(args, "use_vllm", False):
        yield "use_vllm", "true", "vllm"
    if args.use_liger_kernel:
        yield "use_liger_kernel", "true", "liger_kernel"
    if args.deepspeed:
        yield "deepspeed", args.deepspeed, "deepspeed"
    yield from _needed_by_optimizer(str(getattr(args.optim, "value", args.optim)))
    if model_args.use_peft:
        yield "use_peft", "true", "peft"
    for key in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_args, key):
            yield key, "true", "bitsandbytes"
    attention = model_args.attn_implementation
    if attention is not None:
        module = "kernels" if "/" in attention else ATTENTION.get(attention)
        if module is not None:
            yield "attn_implementation", attention, module


def _trackers(report_to: Any) -> list[str]:
    names = [report_to] if isinstance(report_to, str) else report_to or []
    return [name for name in names if name not in ("none", "all")]


def _needed_by_optimizer(name: str) -> Iterator[tuple[str, str, str]]:
    own = [module for beginning, module in OPTIMIZERS.items() if name.startswith(beginning)]
    if own:
        yield "optim", name, own[0]
    elif any(part in name for part in BITSANDBYTES_OPTIMIZERS):
        yield "optim", name, "bitsandbytes"


# -- precision --------------------------------------------------------------------------------------------------------


def check_precision(args: Any) -> None:
    """Raises `RecipeError` where the recipe turns off the precision that DeepSpeed was launched with: it keeps weights
    in it, and would refuse when the model is at hand."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    by_flags = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") == "none"  # else that file says
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true" or not by_flags:
        return
    if launched in ("bf16", "fp16") and getattr(args, launched) is False:
        raise RecipeError(
            f"{launched}: the recipe says false, and DeepSpeed was launched with mixed_precision: {launched}; set "
            f"{launched}: true, or launch with --mixed_precision no"
        )


# -- places -----------------------------------------------------------------------------------------------------------


def check_output_dir(output_dir: str | None) -> None:
    """Raises `RecipeError` unless the folder can be made and written; leaves nothing behind."""
    folder = Path(output_dir or "trainer_output").absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists() or parent.is_symlink())
    problem = None
    if not place.is_dir():
        problem = f"{place} is not a folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        problem = f"no permission to write in {place}"
    else:
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            problem = f"{place} cannot be written: {error.strerror}"
    if problem is not None:
        raise RecipeError(f"output_dir: {output_dir}: {problem}")


def check_model_folder(key: str, name: str | None) -> None:
    """Raises `RecipeError` for a model that is meant as a folder, which does not exist or holds no model."""
    if name is None:
        return
    try:
        check_model_place(name)
    except ModelError as error:
        raise error.at(key) from error


def check_checkpoint(folder: Path) -> None:
    """Raises `RecipeError` unless the folder is a trainer's checkpoint, whole or not."""
    if not (folder / TRAINER_STATE).is_file():
        raise RecipeError(f"resume_from_checkpoint: no checkpoint in '{folder}' (expected {TRAINER_STATE})")


def check_vllm_revision(args: Any, model_args: Any) -> None:
    """Raises `RecipeError` where TRL would start vLLM, which it tells no revision, on another one than the model's."""
    if args.vllm_mode != "colocate":
        return
    name, hub = model_args.model_name_or_path, hub_arguments(args, model_args)
    base = base_of_adapters(name, hub)
    name, revision = (name, hub["revision"]) if base is None else (base.name, base.revision)
    if revision not in (None, DEFAULT_REVISION) and not Path(name).is_dir():
        raise RecipeError(
            f"vllm_mode: colocate starts vLLM on the main branch of {name}, not on revision '{revision}'; take a "
            f"folder with it (hf download {name} --revision {revision} --local-dir FOLDER), or vllm_mode: server"
        )


def check_weights_can_be_sent(model_args: Any) -> None:
    """Raises `RecipeError` for weights that vLLM could not be given after an update."""
    for key in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_args, key):
            raise RecipeError(
                f"{key}: true with use_vllm: true: TRL sends vLLM the weights as they are stored, and vLLM cannot be "
                "given quantised ones; expected use_peft: true on weights of dtype: bfloat16, or use_vllm: false"
            )


# -- keys that need, or exclude, each other ---------------------------------------------------------------------------

OF_PEFT = ("use_peft", "load_in_4bit", "load_in_8bit")


def check_trained_weights(method: str, script: Any, args: Any, model_args: Any) -> None:
    """Raises `RecipeError` for quantised weights, which cannot be trained, without adapters on them; and for either
    where the whole model is trained."""
    asked = [name for name in OF_PEFT if getattr(model_args, name)]
    if asked and (method == "factors" or getattr(script, "policy", None) == "selector"):
        what = "a factor predictor" if method == "factors" else "a selector"
        raise RecipeError(f"{asked[0]}: {what} is trained as it is; leave it out")
    quantised = [key for key in asked if key != "use_peft"]
    if not quantised or model_args.use_peft:
        return
    weights_only = getattr(script, "load_weights_only", False)
    name = args.resume_from_checkpoint if weights_only else model_args.model_name_or_path
    if name is not None and base_of_adapters(name, hub_arguments(args, model_args)) is None:
        raise RecipeError(
            f"{quantised[0]}: quantised weights are not trained themselves, but adapters on them: set use_peft: true"
        )


NOT_OF = {
    "selector": {
        "freeze_vision_tower": (False,),
        "shared_prefix": ("auto", "false", False),
        "shared_prefix_check": (False,),
        "min_pixels": (None,),
        "max_pixels": (None,),
        "max_prompt_length": (None,),
    },
    "vlm": {"freeze_backbone": (False,), "label_smoothing_factor": (0,)},
}
"""Policy -> settings that it does not read, and the values that ask nothing of it."""


def check_policy_settings(policy: str, args: Any) -> None:
    """Raises `RecipeError` for a setting that only another kind of policy reads."""
    for key, nothing in NOT_OF[policy].items():
        if getattr(args, key) not in nothing:
            other = next(name for name in NOT_OF if name != policy)
            raise RecipeError(f"{key}: only policy: {other} reads it, and this is a {policy}; leave it out")


def check_prompts_with_completions(args: Any) -> None:
    """Raises `RecipeError` for settings of TRL's SFT that rows of prompt, completion and images do not go with."""
    reasons = {
        "packing": "sequences would be cut, and half an image cannot be read",
        "padding_free": "TRL has it for texts only, and rows may have images",
        "assistant_only_loss": "rows are prompt and completion, of which the completion alone is learned",
    }
    for name, reason in reasons.items():
        if getattr(args, name, False):
            raise RecipeError(f"{name}: expected false: {reason}")
    path = args.chat_template_path
    if path is not None and not path.endswith(TEMPLATE_FILES):
        raise RecipeError(
            f"chat_template_path: expected a file *.jinja or *.j2, which suits a processor, found '{path}'"
        )


# -- the metric that chooses the best model ---------------------------------------------------------------------------

OF_EVERY_TRAINER = ("loss", "runtime", "samples_per_second", "steps_per_second")
_OF_GROUPS = ("accuracy", "expected_reward")
_LENGTHS = ("mean_length", "min_length", "max_length", "clipped_ratio", "mean_terminated_length",
            "min_terminated_length", "max_terminated_length")  # fmt: skip
METRICS = {
    "GRPO": ("reward", "reward_std", "frac_reward_zero_std", "entropy", "num_tokens")
    + tuple(f"completions/{name}" for name in _LENGTHS),
    "SFT": ("entropy", "mean_token_accuracy", "num_tokens"),
    "reward": ("accuracy", "ties", "score_gap", "score_mean", "saturation", "score_std", "score_min", "score_max",
               "preference_loss", "num_tokens"),
    "selector SFT": _OF_GROUPS,
    "RCE": _OF_GROUPS,
    "offline GRPO": (*_OF_GROUPS, "kl", "ratio"),
    "factors": ("bce", "f1_micro", "f1_macro", "map", "precision_micro", "recall_micro", "subset_accuracy"),
}  # fmt: skip
"""What an evaluation of each method logs, without the prefix `eval_`."""


def logged_metrics(method: str, script: Any, args: Any) -> list[str]:
    """Names of the figures of an evaluation, without the prefix `eval_`."""
    names = [*METRICS[method], *OF_EVERY_TRAINER]
    if method == "GRPO":
        names += [f"rewards/{spec_name(spec)}/{of}" for spec in script.reward_funcs for of in ("mean", "std")]
        names += ["kl"] * (args.beta != 0) + CLIP_METRICS.get(args.loss_type, CLIP_METRICS["dapo"])
    if method == "reward" and args.lm_loss_weight:
        names.append("lm_loss")
    return names


CLIP_METRICS = {
    "cispo": ["cispo_clip_ratio"],
    "vespo": ["vespo/phi_seq_mean"],
    "sapo": [],
    "dapo": [f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")],
}
"""Figures that depend on the loss of GRPO; other losses have those of dapo."""


def check_metric(method: str, script: Any, args: Any) -> None:
    """Raises `RecipeError` if the best model is to be chosen by a figure that no evaluation will log."""
    metric = args.metric_for_best_model
    if metric is None:
        return
    if args.eval_strategy == "no":
        raise RecipeError(f"metric_for_best_model: {metric} is never measured with eval_strategy: no")
    known = logged_metrics(method, script, args)
    if metric.removeprefix("eval_") not in known:
        hint = closest_key(metric.removeprefix("eval_"), known)
        why = "; there is no KL with beta: 0" if method == "GRPO" and metric.removeprefix("eval_") == "kl" else ""
        raise RecipeError(
            f"metric_for_best_model: an evaluation of {method} logs no '{metric}'{why}; {hint}"
            f"expected one of: {', '.join(f'eval_{name}' for name in known)}"
        )
