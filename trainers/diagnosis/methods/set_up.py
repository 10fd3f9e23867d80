"""What a recipe says, for checks that leave no trace: as training scripts read it, but for where a run writes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from trainers.setup.checks import check_set_up
from trainers.setup.recipes import parse_recipe


@contextmanager
def isolated_set_up(
    method: str, classes: tuple[type, ...], argv: Sequence[str]
) -> Iterator[tuple[Any, Any, Any, str]]:
    """What a recipe and the command line say, checked as a training script checks it. Trainers that are made within
    write to a temporary folder, and nothing to the Hub, where TRL's would make a repository at once.

    Args:
        method: one of `trainers.setup.checks.METRICS`.
        classes: dataclasses of the script, the trainer and the model.

    Yields:
        One of each class, and the recipe's own `output_dir`.

    Raises:
        RecipeError: the first thing that is wrong.
    """
    script, args, model_args, _ = parse_recipe(classes, argv)
    own = str(args.output_dir)
    with TemporaryDirectory() as folder:
        script.validate_only, args.push_to_hub, args.output_dir = False, False, folder
        args.log_completions_hub_repo = None  # of GRPO, also a repository
        check_set_up(method, script, args, model_args)
        args.eval_strategy = "no"  # else a trainer asks for rows to evaluate on
        yield script, args, model_args, own
