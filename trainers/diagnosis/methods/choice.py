"""Which method a recipe trains by, and its checks."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError

if TYPE_CHECKING:  # the command reads its options before anything that takes long is imported
    from trainers.diagnosis.findings import Finding
    from trainers.diagnosis.rollout import Backend

METHODS = ("grpo", "sft", "rce", "offline-grpo", "reward")
_COMMAND = re.compile(r"(?:vlm-posttrain |trainers[/.])([a-z_-]+)(?:\.py)? --config")
_OF_GRPO = ("reward_funcs", "num_generations", "max_completion_length")


def method_of(recipe: Path, keys: Sequence[str]) -> str:
    """The method of a recipe: by the command in its first lines, else by its keys.

    Args:
        recipe: the file.
        keys: of recipe and command line.

    Raises:
        UserError: there is no such file, or neither tells.
    """
    if not recipe.is_file():
        raise UserError(f"--config: {recipe}: {'a folder' if recipe.is_dir() else 'no such file'}; expected a recipe")
    head = recipe.read_text(encoding="utf-8")
    comments = "\n".join(line for line in head.splitlines() if line.startswith("#"))
    named = [word.replace("_", "-") for word in _COMMAND.findall(comments)]
    if named and named[0] in METHODS:
        return named[0]
    if not named and set(_OF_GRPO) & set(keys) and "policy" not in keys:
        return "grpo"
    found = f"its first lines say {named[0]}" if named else "its first lines do not say"
    raise UserError(f"{recipe}: {found}; expected --method {', '.join(METHODS)}")


def findings_of(method: str, words: Sequence[str], backend: "Backend", limit: int) -> "Iterator[Finding]":
    """What is found of a recipe.

    Args:
        method: one of `METHODS`.
        words: a command line of its script.
        backend: where completions come from, of GRPO.
        limit: rows that are looked at.
    """
    if method == "grpo":
        from trainers.diagnosis.methods.grpo import diagnose_grpo

        return diagnose_grpo(words, backend, limit)
    if method == "reward":
        from trainers.diagnosis.methods.preferences import diagnose_reward

        return diagnose_reward(words, limit)
    from trainers.diagnosis.methods.answers import diagnose_groups, diagnose_sft

    if method == "sft":
        return diagnose_sft(words, limit)
    if method == "rce":
        from trainers.rce import RCEConfig

        return diagnose_groups("RCE", RCEConfig, words, limit)
    from trainers.offline_grpo import OfflineGRPOConfig

    return diagnose_groups("offline GRPO", OfflineGRPOConfig, words, limit)
