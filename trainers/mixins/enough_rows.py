"""A run that would train no step is an error before it starts, rather than a saved model that has learned nothing."""

from typing import Any

from transformers.trainer_utils import has_length

from trainers.setup.recipes import RecipeError


def rows_of_a_step(args: Any) -> tuple[int, str]:
    """How many rows the first step needs, and what says so."""
    if getattr(args, "num_generations", None) is not None:
        said = f"one rollout takes generation_batch_size / num_generations = {args.generation_batch_size} / "
        return args.generation_batch_size // args.num_generations, f"{said}{args.num_generations} different ones"
    if args.dataloader_drop_last:
        needed = args.train_batch_size * args.world_size
        return needed, f"dataloader_drop_last leaves out batches of fewer than {needed} on all processes"
    return 1, "a step needs one at least"


def check_enough_rows(count: int, args: Any, source: str) -> None:
    """Raises `RecipeError` if no step would be trained.

    Args:
        count: rows, groups or pictures to train on.
        source: for the message.
    """
    needed, reason = rows_of_a_step(args)
    if count < needed:
        raise RecipeError(f"{source}: {count} to train on, expected at least {needed}: {reason}")


class TrainsSomething:
    """Trainer mix-in: training that would take no step, or took none, is a `RecipeError`."""

    def get_train_dataloader(self) -> Any:
        if has_length(self.train_dataset):
            check_enough_rows(len(self.train_dataset), self.args, "train_dataset")
        return super().get_train_dataloader()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        if self.state.global_step == 0:  # streamed data tell only when they end
            needed, reason = rows_of_a_step(self.args)
            raise RecipeError(f"train_dataset: no step was trained, expected at least {needed} rows: {reason}")
        return output
