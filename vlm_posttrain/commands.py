"""The table of all commands, and how one of them is run."""

import importlib.util
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.cli.help import NAME
from data.cli.package_files import ACCELERATE_CONFIGS, names_in
from data.cli.suggestions import closest
from data.errors import UserError
from vlm_posttrain.import_path import OURS
from vlm_posttrain.launch import is_worker, launch, split_launch

WIDTH = 119
TRAINERS = {
    "sft": "trainers.sft",
    "grpo": "trainers.grpo",
    "rce": "trainers.rce",
    "offline-grpo": "trainers.offline_grpo",
    "reward": "trainers.reward",
    "factors": "trainers.factors",
}
"""Command -> module, of what a recipe is trained by, on one device or many."""
OTHERS = {
    "Evaluate": {
        "eval": "rewards.eval",
        "validate": "rewards.validate",
        "score": "rewards.score",
        "reward-bench": "rewards.reward_bench",
        "judging": "rewards.judging",
        "run-report": "trainers.report",
        "doctor": "trainers.doctor",
    },
    "Use a model": {
        "completions": "rollouts.completions",
        "filter": "rollouts.filter_dataset",
        "embeddings": "rollouts.embeddings",
        "pools": "rollouts.pools",
        "beams": "rollouts.beams",
        "candidates": "rollouts.candidates",
        "in-context": "rollouts.in_context",
        "factor-routing": "rollouts.factor_routing",
        "factor-reports": "rollouts.factor_reports",
        "compare-factors": "rollouts.compare_factors",
    },
    "Make data": {
        "reports": "data.quality_reports",
        "agent-selection": "data.agent_selection",
        "annotators": "data.annotators",
        "vqa": "data.vqa",
        "dialects": "data.dialects",
        "candidate-groups": "data.candidate_groups",
        "preferences": "data.preferences",
        "factor-labels": "data.factors",
        "easy-factors": "data.easy_factors",
    },
    "Make a model by other means": {
        "tiny": "models.tiny",
        "tiny-reader": "models.tiny_reader",
        "convert-selector": "models.convert_selector",
    },
    "Look up": {
        "recipes": "vlm_posttrain.recipes",
        "env": "vlm_posttrain.environment",
    },
}
"""Subject -> command -> module, which `python -m` runs too."""
COMMANDS = TRAINERS | {name: module for modules in OTHERS.values() for name, module in modules.items()}


# -- help -------------------------------------------------------------------------------------------------------------


def help_text() -> str:
    """Every command and what its module says of itself."""
    train = f"{NAME} {'|'.join(TRAINERS)} --config RECIPE [--launch NAME] [--KEY VALUE ...]"
    lines = [
        f"usage: {train}",
        f"       {NAME} COMMAND [--launch NAME] ...",
        f"       {NAME} COMMAND --help | --version",
        "",
    ]
    lines += ["RECIPE is a file, or a name that `vlm-posttrain recipes` lists. --launch spreads work over devices:"]
    lines += [f"{', '.join(names_in(ACCELERATE_CONFIGS))}, or a file of accelerate's.", ""]
    for subject, modules in {"Train": TRAINERS, **OTHERS}.items():
        lines += [f"{subject}:", *(line for entry in modules.items() for line in _described(*entry)), ""]
    return "\n".join(lines)


def _described(name: str, module: str) -> list[str]:
    with _source(module).open(encoding="utf-8") as file:
        says = file.readline().strip().strip('"')
    indent = " " * 19
    return textwrap.wrap(
        says, WIDTH, initial_indent=f"  {name:<16} ", subsequent_indent=indent, break_on_hyphens=False
    )


def _source(module: str) -> Path:
    """The file that runs when a module does."""
    place = OURS.joinpath(*module.split("."))
    return place / "__main__.py" if place.is_dir() else place.with_suffix(".py")


# -- running ----------------------------------------------------------------------------------------------------------


def run(name: str, words: Sequence[str]) -> None:
    """Runs a command in this process, or in those that it is to be spread over.

    Raises:
        UserError: no such command.
    """
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'; {closest(name, COMMANDS)}`{NAME} --help` lists all")
    how, options = split_launch(words)
    if how is not None and not is_worker() and not {"-h", "--help"} & {*words}:
        sys.exit(launch(how, [name, *words]))
    run_module(COMMANDS[name], [f"{NAME} {name}", *options])


def run_module(module: str, argv: Sequence[str]) -> None:
    """Runs a module as `python -m` does, but for the name that it has for people.

    Args:
        argv: that name, and the options.
    """
    spec: Any = importlib.util.find_spec(module)
    if spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    main = importlib.util.module_from_spec(spec)
    main.__name__ = "__main__"
    sys.argv, sys.modules["__main__"] = list(argv), main
    exec(spec.loader.get_code(spec.name), vars(main))
