"""Settings that only the model at hand can judge: tokens of its tokenizer, and options that it is loaded with."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from data.cli.folder_names import looks_local
from models.families.base import IMAGE_INPUTS, TOKEN_TYPES, KnownFamily, backbone_kind, not_known
from models.families.image_counts import image_inputs
from models.families.registry import family_of, family_of_processor
from models.families.vision_hooks import vision_language_model
from models.reward.names import backbone_type
from models.shared_prefix.attention import IMPLEMENTATIONS
from trainers.run.console import say
from trainers.setup.adapter_targets import check_adapters, what_experts_get, without_weights
from trainers.setup.checks import TEMPLATE_FILES
from trainers.setup.keyword_settings import check_keywords
from trainers.setup.model import ModelInfo, hub_arguments, init_kwargs, inspect_model
from trainers.setup.recipes import RecipeError


def checked_model(
    script: Any, args: Any, model_args: Any, check: Callable[[Any, Any, Any], None] | None = None
) -> ModelInfo:
    """The model that a recipe names, which may be out of reach where the recipe is only validated.

    Args:
        check: of its kind and the adapters that it gets, on `(configuration, args, model_args)`; by default of a model
            that writes texts.

    Raises:
        RecipeError: it cannot be loaded, or does not go with the settings.
    """
    hub = hub_arguments(args, model_args)
    model = inspect_model(model_args.model_name_or_path, args, not script.validate_only, hub)
    check_model_settings(args, model)
    use_chat_template(args, model)
    (check or _check_writer)(model.config, args, model_args)
    check_family(model.config, args, model_args)
    check_sharing(model.config, args, model_args)
    for note in what_experts_get(model.config, model_args):
        say(f"note: {note}")
    return model


def _check_writer(config: Any, args: Any, model_args: Any) -> None:
    """Raises `RecipeError` for a reward model, and for adapters on what the model does not have."""
    if config is not None and backbone_type(config.model_type) is not None:
        raise RecipeError(
            f"model_name_or_path: '{model_args.model_name_or_path}': expected a model that writes texts, found a "
            f"reward model (model_type '{config.model_type}'), which trainers/reward.py trains further"
        )
    check_adapters(config, args, model_args)


def check_family(config: Any, args: Any, model_args: Any) -> None:
    """Says of a model of no known family (`None`: out of reach) that it goes the plain way, and why.

    Raises:
        RecipeError: it is not made of what trains here.
    """
    if config is None or isinstance(family_of(config), KnownFamily) or getattr(config, "auto_map", None):
        return
    found = f"model_name_or_path: '{model_args.model_name_or_path}': models of type '{backbone_kind(config)}'"
    if config.is_encoder_decoder:
        raise RecipeError(f"{found} read with an encoder and write with a decoder; expected one with a decoder alone")
    try:
        vision_language_model(without_weights(config))
    except ValueError as error:
        raise RecipeError(f"{found} cannot be trained here: {error}") from error
    if getattr(args, "shared_prefix", None) == "auto":
        say(f"note: each row computes its prompt by itself: {not_known(config)}")


def check_image_inputs(model: ModelInfo) -> None:
    """Raises `RecipeError` where images of the model (out of reach without a processor) come with more than GRPO hands
    on to it."""
    if model.processor is None or isinstance(family_of_processor(model.processor), KnownFamily):
        return
    lost = [name for name in image_inputs(model.processor) if name not in (*IMAGE_INPUTS, *TOKEN_TYPES)]
    if lost:
        raise RecipeError(
            f"model_name_or_path: {type(model.processor).__name__} makes {', '.join(lost)} of images, which GRPO does "
            "not hand on to the model; SFT, RCE, offline GRPO and reward models do"
        )


def check_model_settings(args: Any, model: ModelInfo) -> None:
    """Checks what can be, of a model that may be out of reach.

    Raises:
        RecipeError: tokens that the tokenizer lacks, a chat template that cannot be read, options that nothing reads.
    """
    if model.processor is not None:
        _check_tokens(args, model.processor)
    if model.config is not None:
        given = init_kwargs(args)
        known = [*_LOADING, *vars(model.config), *(name for name in given if hasattr(model.config, name))]
        check_keywords("model_init_kwargs", given, known)
    _check_template(getattr(args, "chat_template_path", None))


def check_sharing(config: Any, args: Any, model_args: Any) -> None:
    """Raises `RecipeError` if `shared_prefix: true` cannot be for the model (`None`: out of reach) or its adapters."""
    if getattr(args, "shared_prefix", None) != "true" or config is None:
        return
    reason = _reason_not_shared(config, args, model_args)
    if reason is not None:
        raise RecipeError(f"shared_prefix: true: prompts cannot be shared exactly: {reason}")


def _reason_not_shared(config: Any, args: Any, model_args: Any) -> str | None:
    """What is known without the weights: trainers ask the model itself."""
    attention = model_args.attn_implementation
    if attention not in (None, *IMPLEMENTATIONS):
        return f"attn_implementation {attention!r} takes no such mask (of {', '.join(IMPLEMENTATIONS)})"
    if model_args.use_peft and model_args.lora_dropout > 0:
        return f"lora_dropout of {model_args.lora_dropout}, which is drawn anew for each row"
    if _balances_experts(config.get_text_config(), args):
        return "a load-balancing loss, of each row's own prompt too; router_aux_loss_coef: 0 leaves it out"
    try:
        combined = vision_language_model(without_weights(config))
    except ValueError as error:
        return str(error)
    return family_of(combined.config).reason_not_shared(combined)


def _balances_experts(text: Any, args: Any) -> bool:
    """Whether the trainer adds the loss of a mixture's routers, as TRL decides it."""
    if not hasattr(args, "router_aux_loss_coef") or not hasattr(text, "output_router_logits"):
        return False
    given = args.router_aux_loss_coef
    return bool(getattr(text, "router_aux_loss_coef", 0.0) if given is None else given)


def use_chat_template(args: Any, model: ModelInfo) -> None:
    """Gives the processor the template of the recipe's file, as the trainer will, so that tokens are counted by it."""
    path = getattr(args, "chat_template_path", None)
    if path is not None and path.endswith(TEMPLATE_FILES) and model.processor is not None:
        model.processor.chat_template = Path(path).read_text(encoding="utf-8")


def _loading_options() -> list[str]:
    """What `from_pretrained` reads: its arguments, and what its body takes out of the others."""
    function = PreTrainedModel.from_pretrained
    named = [name for name in inspect.signature(function).parameters if not name.endswith(("args", "kwargs"))]
    taken = re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"', inspect.getsource(function))
    return [*named, *taken, "code_revision"]


_LOADING = _loading_options()


def _check_tokens(args: Any, processor: Any) -> None:
    known = getattr(processor, "tokenizer", processor).get_vocab()
    for name in ("eos_token", "pad_token"):
        token = getattr(args, name, None)
        if token is not None and token not in known:
            raise RecipeError(f"{name}: the model's tokenizer has no token {token!r}")


def _check_template(path: str | None) -> None:
    """TRL reads the template of a file, or takes that of another tokenizer."""
    if path is None:
        return
    if path.endswith(TEMPLATE_FILES):
        if not Path(path).is_file():
            raise RecipeError(f"chat_template_path: '{path}': no such file")
    elif not Path(path).is_dir() and looks_local(path):
        raise RecipeError(f"chat_template_path: '{path}': no such folder, and not a file *.jinja or *.j2")
