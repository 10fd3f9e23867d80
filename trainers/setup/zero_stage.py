"""The ZeRO stage of a run whose model is small."""

from typing import Any

from trainers.run.console import say


def leave_weights_whole(args: Any, what: str) -> None:
    """Turns ZeRO-3 into ZeRO-2, before the model is made.

    To divide the weights of a small model saves nothing. It would also ask all processes to use the same parts of it
    in the same order, which selectors do not, and fresh weights could not be written when a model is built.

    Args:
        args: `transformers.TrainingArguments`.
        what: is small, for the note about it.
    """
    plugin = args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return
    settings = plugin.deepspeed_config["zero_optimization"]
    settings["stage"] = plugin.zero_stage = 2
    settings.pop("offload_param", None)
    plugin.zero3_init_flag = False
    plugin.hf_ds_config.set_stage_and_offload()
    if not args.deepspeed:  # then transformers asks a copy of the settings, made by the launcher's
        plugin.set_deepspeed_weakref()
    say(f"note: ZeRO-2 in place of ZeRO-3: {what} is too small to be divided")
