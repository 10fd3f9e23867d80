"""Checks of what a recipe, or the model's folder, says of sampling: options that change what is drawn, end tokens."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainers.diagnosis import causes
from trainers.diagnosis.causes import Cause
from trainers.diagnosis.findings import Finding, wrong
from trainers.mixins.sampling_difference import changed_sampling

CAUSES: dict[str, Cause] = {
    "temperature": causes.TEMPERATURE,
    "top_p": causes.TOP_P,
    "top_k": causes.TOP_K,
    "min_p": causes.MIN_P,
    "repetition_penalty": causes.REPETITION,
}
GENERATION_FILE = "generation_config.json"


def check_options(args: Any, whose: str) -> Iterator[Finding]:
    """A line for each option under which tokens are drawn from another distribution than the update's.

    Args:
        args: a `trl.GRPOConfig`, or what has its fields of sampling.
        whose: what says so.
    """
    check, changed = f"sampling of {whose}", changed_sampling(args)
    for name, value in changed.items():
        yield wrong(check, f"{name}: {value}", "none that changes it", CAUSES.get(name, causes.OPTION))
    if not changed:
        yield Finding(check, "no option changes the distribution", "none that changes it")


def check_ids(trainer: Any) -> Iterator[Finding]:
    """Completions end at tokens that are none of the text, and are padded by the tokenizer's padding."""
    tokenizer, check = trainer.processing_class.tokenizer, "end and padding of the model"
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [token for token in trainer.eos_token_ids if token not in known]
    if ordinary:
        found = f"completions end at {tokenizer.convert_ids_to_tokens(ordinary[0])!r} ({ordinary[0]})"
        yield wrong(check, found, "special tokens", causes.ORDINARY_END)
        return
    pad = generation_file(trainer.model.config.name_or_path).get("pad_token_id")
    if pad is not None and pad != tokenizer.pad_token_id:
        found = f"pad_token_id {pad} in {GENERATION_FILE}, {tokenizer.pad_token_id} of the tokenizer"
        yield Finding(check, found, "the same", "note", causes.PADDING)
    else:
        yield Finding(check, "special tokens", "special tokens")


def generation_file(model: str) -> dict[str, Any]:
    """What a model's folder says of generation; nothing of a model that is no folder, or says nothing."""
    try:
        content = json.loads(Path(model, GENERATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
