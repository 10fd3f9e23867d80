"""How a judge is asked, as an entry of a recipe says it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data.cli.arguments import option
from data.cli.ranges import AT_LEAST_0, AT_LEAST_1
from models.served.address import checked_address, is_server
from models.served.arguments import ServerArguments
from models.vlm import Sampling
from rewards.judging.prompts import PAIR_RUBRIC, SCORE_RUBRIC
from rewards.judging.verdicts import Scale

MODES = PAIRWISE, POINTWISE = "pairwise", "pointwise"


@dataclass(kw_only=True)
class JudgeSettings(ServerArguments):
    """How a judge is asked; those of `models/served/arguments.py` are for one behind an address.

    Raises:
        ValueError: a value that it cannot be asked by; names field, found and expected.
        UserError: an address that cannot be one, or settings of a server without one.
    """

    model: str = option("folder, Hub id, or http://host:port/v1 of a server")
    mode: str = option("two responses are compared, or one is given a score", PAIRWISE)
    rubric: str | None = option("what makes a response better; by default truth to question and images", None)
    scale: Sequence[int] = option("worst and best score of a pointwise judge", (1, 10))
    votes: int = option("answers to each question, of which the majority counts", 1, within=AT_LEAST_1)
    temperature: float = option("of the answers; above 0 for several votes", 0.0, within=AT_LEAST_0)
    max_new_tokens: int = option("of an answer", 512, within=AT_LEAST_1)
    opponents: int | None = option("others that a response meets, at least; by default all", None, within=AT_LEAST_1)
    max_calls: int | None = option("by all processes together; by default any number", None, within=AT_LEAST_1)
    batch_size: int = option("questions a forward pass, of a model that is loaded here", 8, within=AT_LEAST_1)
    min_pixels: int | None = option("of an image; by default the model's", None, within=AT_LEAST_1)
    max_pixels: int | None = option("of an image; by default the model's", None, within=AT_LEAST_1)
    seed: int = option("of the answers, and of who meets whom", 0, within=AT_LEAST_0)
    revision: str | None = option("branch, tag or commit of a Hub repository; by default its main branch", None)

    def __post_init__(self):
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"model: expected a folder, Hub id or address, found {self.model!r:.80}")
        for item in fields(self):
            _check_number(item.name, getattr(self, item.name), "int" in str(item.type), item.metadata["within"])
        if self.mode not in MODES:
            raise ValueError(f"mode: expected {PAIRWISE} or {POINTWISE}, found {self.mode!r:.80}")
        if self.rubric is not None and (not isinstance(self.rubric, str) or not self.rubric.strip()):
            raise ValueError(f"rubric: expected a text, found {self.rubric!r:.80}")
        if self.votes > 1 and not self.temperature:
            raise ValueError(
                f"temperature: expected above 0 for {self.votes} votes, which would all be equal, found 0"
            )
        self.scale = _read_scale(self.scale)
        self.answer_cache = None if self.answer_cache is None else Path(self.answer_cache)
        if self.is_served:
            self.server_settings(checked_address(self.model))  # only said to be right
        else:
            self.check_unused(but=("answer_cache",))

    @property
    def is_served(self) -> bool:
        return is_server(self.model)

    @property
    def model_name(self) -> str:
        """For files and tables."""
        return (self.served_model_name or "judge") if self.is_served else Path(self.model).name

    @property
    def is_pairwise(self) -> bool:
        return self.mode == PAIRWISE

    @property
    def stated_rubric(self) -> str:
        return self.rubric or (PAIR_RUBRIC if self.is_pairwise else SCORE_RUBRIC)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.votes, self.temperature, self.seed)


def _check_number(name: str, value: Any, whole: bool, within: Any) -> None:
    """Raises `ValueError` for a number of another type, or out of its range."""
    if within is None or value is None:
        return
    if type(value) not in ((int,) if whole else (int, float)) or value not in within:
        raise ValueError(f"{name}: expected {'an integer, ' if whole else ''}{within}, found {value!r:.80}")


def _read_scale(given: Any) -> Scale:
    is_pair = isinstance(given, list | tuple) and len(given) == 2 and all(type(end) is int for end in given)
    if not is_pair or given[0] >= given[1]:
        raise ValueError(f"scale: expected two integers, the worst and the best score, found {given!r:.80}")
    return Scale(*given)
