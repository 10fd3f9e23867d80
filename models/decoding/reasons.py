"""Where the loop would not give what transformers' `generate` gives, and why."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import GenerationConfig
from transformers.generation import GenerationMode
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_managed_module

from models.shared_prefix.sharing import reason_not_shared

_PLAIN: dict[str, tuple] = {
    "stop_strings": (None,),
    "guidance_scale": (None, 1, 1.0),
    "cache_implementation": (None, "dynamic"),
    "prefill_chunk_size": (None,),
    "token_healing": (None, False),
    "return_dict_in_generate": (None, False),
    "use_cache": (None, True),
    "watermarking_config": (None,),
    "synced_gpus": (None, False),
}
"""Options of `generate`, and the values under which it only draws one token after the other."""
_ARGUMENTS = (
    "assistant_model",
    "streamer",
    "custom_generate",
    "prefix_allowed_tokens_fn",
    "past_key_values",
    "cache",
    "inputs_embeds",
)
"""Arguments of `generate` under which it does more."""
_OF_MODE = ("do_sample", "num_beams", "num_beam_groups", "penalty_alpha", "top_k", "constraints", "force_words_ids")
_OF_MODE += ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "dola_layers")
"""Options that say in which of its ways `generate` makes tokens."""
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def reason_not_rolled_out(model: nn.Module, arguments: dict[str, Any], gathered: bool = False) -> str | None:
    """Why the loop cannot do what `model.generate` is asked for; `None` if it can.

    Args:
        arguments: of `generate`, by name.
        gathered: whether every process holds all weights while it generates, also those that ZeRO-3 divides.
    """
    for reason in (_of_arguments(model, arguments), _of_processes(model, gathered), reason_not_shared(model)):
        if reason is not None:
            return reason
    return None


def _of_arguments(model: nn.Module, arguments: dict[str, Any]) -> str | None:
    given = next((name for name in _ARGUMENTS if arguments.get(name) is not None), None)
    if given is not None:
        return given
    own = getattr(model, "generation_config", None)
    value = _values(arguments, own if own is not None else GenerationConfig())
    for name, plain in _PLAIN.items():
        if value(name) not in plain:
            return f"{name}: {value(name)}"
    mode = GenerationConfig(**{name: value(name) for name in _OF_MODE}).get_generation_mode()
    return None if mode in _MODES else mode.value.replace("_", " ")


def _values(arguments: dict[str, Any], own: GenerationConfig) -> Callable[[str], Any]:
    """What holds: arguments before the configuration among them, before the model's own."""
    asked = arguments.get("generation_config")

    def value(name: str) -> Any:
        found = arguments.get(name)
        if found is None and asked is not None:
            found = getattr(asked, name, None)
        return getattr(own, name, None) if found is None else found

    return value


def _of_processes(model: nn.Module, gathered: bool) -> str | None:
    """Processes that share weights must make equally many forwards, unless each holds all of them meanwhile."""
    if is_deepspeed_zero3_enabled() and not gathered:
        return "weights divided by ZeRO-3, for which all processes make equally many steps"
    if is_fsdp_managed_module(model):
        return "weights divided by FSDP, for which all processes make equally many steps"
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    return f"a model on {len(places)} devices" if len(places) > 1 else None
