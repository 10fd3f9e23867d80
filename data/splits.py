"""Training, validation and test: names, shares, and dividing records among them."""

import argparse
import random

SPLITS = ("train", "validation", "test")
DEFAULT_SHARES = (0.8, 0.1, 0.1)

Shares = tuple[float, float, float]
"""Of training, validation and test; they add up to 1."""


def add_share_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--train-split`, `--val-split` and `--test-split`."""
    for name, share in zip(("train", "val", "test"), DEFAULT_SHARES, strict=True):
        parser.add_argument(f"--{name}-split", type=float, default=share, help=f"share, {share} by default")


def read_share_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Shares:
    """The three shares; ends the program with a message if they do not add up to 1."""
    shares = (arguments.train_split, arguments.val_split, arguments.test_split)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        parser.error(f"--train-split, --val-split and --test-split must add up to 1, found {shares}")
    return shares


def split_sizes(total: int, shares: Shares) -> tuple[int, int, int]:
    """Sizes of the splits, cut at rounded places: they add up to `total`, and a share of 0 gives none."""
    first, second = round(shares[0] * total), round((shares[0] + shares[1]) * total)
    return first, second - first, total - second


def divide(records: list, shares: Shares, seed: int) -> dict[str, list]:
    """A seeded shuffle cut into the three splits."""
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    train, validation, _ = split_sizes(len(shuffled), shares)
    parts = (shuffled[:train], shuffled[train : train + validation], shuffled[train + validation :])
    return dict(zip(SPLITS, parts, strict=True))
