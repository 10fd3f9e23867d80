"""What a training script does before its heavy imports: answer `--help`, and find most mistakes of a set-up."""

import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from data.cli.help import NAME, described, entry
from data.errors import UserError
from trainers.setup.recipe_keys import Key, keys_of_source

_HELP = ("-h", "--help")
REFUSED = (("sft", "max_length"),)
"""Keys that a script has only to refuse them, which `--help` leaves out."""


def before_imports(script: str, method: str, *classes: str) -> None:
    """Prints usage and ends the program if the command line asks for help, or a message if the set-up is wrong.

    The keys are read from the source of the classes, because importing TRL and transformers takes many seconds; what
    is found here `main` would find too.

    Args:
        script: its path.
        method: one of `trainers.setup.checks.METRICS`.
        classes: names of the dataclasses that it reads its recipe into.
    """
    argv = sys.argv[1:]
    path = Path(script)
    if path.stem == "sft":
        from trainers.setup.recipes import recipe_value

        if recipe_value(argv, "policy") == "selector":  # which decides on the keys
            method, classes = "selector SFT", ("GroupArguments", "SelectorSFTConfig", "ModelConfig")
    if any(argument in _HELP for argument in argv):
        sys.stdout.write(help_text(path, keys_of_source(path.stem, classes, ours=True).values()))
        sys.exit(0)
    try:
        check_early(method, keys_of_source(path.stem, classes), argv)
    except UserError as error:
        from data.cli.commands import with_rank

        sys.stderr.write(with_rank(f"error: {error}") + "\n")
        sys.exit(1)


# -- help -------------------------------------------------------------------------------------------------------------


def help_text(path: Path, keys: Sequence[Key]) -> str:
    """What `--help` prints: the keys of this toolkit; those of TRL's and transformers' are in their documentation."""
    command = f"{NAME} {path.stem.replace('_', '-')}"
    lines = [f"usage: {command} --config RECIPE [--launch zero3 ...] [--KEY VALUE ...]"]
    lines += [f"       accelerate launch trainers/{path.name} --config RECIPE [--KEY VALUE ...]", ""]
    lines += ["Keys of this toolkit, in a recipe or on the command line, which wins:", ""]
    for key in keys:
        if key.ours and (path.stem, key.name) not in REFUSED:
            lines.append(entry(key.name, key.shown_annotation, key.shown_default, key.help))
    lines += ["", "And every key of TRL's configuration for this method, transformers.TrainingArguments and"]
    lines += ["trl.ModelConfig. A key that none of them has is an error that names the closest ones."]
    return described(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), lines)


# -- checks -----------------------------------------------------------------------------------------------------------


def check_early(method: str, keys: dict[str, Key], argv: Sequence[str]) -> None:
    """Checks recipe, command line, packages and places; and, where the recipe is only to be validated, the data too.

    Raises:
        RecipeError, RecordError, RewardSpecError, AgentError, ImageError: the first thing that is wrong.
    """
    from trainers.setup.checks import check_set_up  # imports more than `--help` needs
    from trainers.setup.recipes import parse_entries, read_recipe

    defaults = {name: None if key.default is MISSING else key.default for name, key in keys.items()}
    set_up = SimpleNamespace(**defaults | read_recipe(keys, argv).values)
    check_set_up(method, set_up, set_up, set_up)
    if set_up.validate_only:
        set_up.agents = parse_entries(set_up.agents)
        _DATA_CHECKS[method](set_up)


def _check_tasks(set_up: Any) -> None:
    from rewards.registry import build_rewards
    from rewards.scoring.columns import check_columns
    from trainers.setup.recipes import parse_entries
    from trainers.setup.task_data import load_task_rows

    rewards = build_rewards(parse_entries(getattr(set_up, "reward_funcs", None)) or [], set_up.agents)
    rows = load_task_rows(set_up, set_up.dataset_train_split, check_files=False)
    check_columns(rewards, rows, set_up.dataset_name)


def _check_groups(set_up: Any) -> None:
    from data.candidate_groups import load_groups

    load_groups(set_up.dataset_name, set_up.dataset_train_split, check_files=False)


def _check_preferences(set_up: Any) -> None:
    from data.preferences import load_preferences

    load_preferences(set_up.dataset_name, set_up.dataset_train_split, set_up.skip_bad_rows, check_files=False)


def _check_factors(set_up: Any) -> None:
    from data.factors import load_factor_set, load_labelled

    factors = load_factor_set(set_up.dataset_name)
    load_labelled(set_up.dataset_name, set_up.dataset_train_split, factors.ids, check_files=False)


_DATA_CHECKS: dict[str, Callable[[Any], None]] = {
    "GRPO": _check_tasks,
    "SFT": _check_tasks,
    "reward": _check_preferences,
    "selector SFT": _check_groups,
    "RCE": _check_groups,
    "offline GRPO": _check_groups,
    "factors": _check_factors,
}
