"""Scores of many responses by a judge, in the place of a reward model's (`rewards/scoring/model_scores.py`)."""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.cli.commands import check_alone
from data.io.records import RecordError
from rewards.diagnosis.verdicts import FLIPS, share
from rewards.judging.groups import GroupJudge, figures_of
from rewards.judging.models import load_judge
from rewards.judging.settings import JudgeSettings
from rewards.scoring.model_scores import ScoreRequest

UNDECIDED = 0.5
_AT_ONCE = 64
"""Requests that are judged side by side."""


@dataclass
class JudgeScores:
    """Where and how scores are made, by one process.

    Attributes:
        settings: of the judge. Its answers are kept in `answer_cache`, by default in `work_dir` until `forget`, so
            that work goes on where it was killed.
        restart: discard the answers that are kept in `work_dir`.
        figures: what the last scores have cost and how far votes agree (`rewards.judging.groups.figures_of`).
        order: on how many of the last scores' pairs the order of the responses decided, as a diagnosis takes it
            (`rewards.diagnosis.verdicts.order_effect`); `None` without pairs that were judged in both orders.
    """

    settings: JudgeSettings
    work_dir: Path
    restart: bool = False
    figures: dict[str, float] = field(default_factory=dict, init=False)
    order: dict[str, dict[str, Any]] | None = field(default=None, init=False)

    def score(self, requests: Sequence[ScoreRequest], source: str) -> list[list[float]]:
        """Scores of every request's responses, in order; of a request with a response that cannot be scored, all are
        `UNDECIDED`.

        Args:
            source: of the requests, for messages.

        Raises:
            RecordError: no requests.
            ModelError: the judge is not there, or has no answer to any question of a request.
        """
        if not requests:
            raise RecordError([f"{source}: there is nothing to score: no rows"])
        check_alone()
        if self.restart:
            shutil.rmtree(self.work_dir, ignore_errors=True)
        cache = self.settings.answer_cache or self.work_dir
        judge = GroupJudge(load_judge(replace(self.settings, answer_cache=cache)), self.settings)
        scores = asyncio.run(self._scores(judge, requests))
        self.figures = figures_of(judge.seen + judge.model.counts)
        pairs, alike = judge.seen["pairs"], judge.seen["alike"]
        self.order = {FLIPS: share([1.0] * (pairs - alike) + [0.0] * alike)} if pairs else None
        return scores

    def forget(self) -> None:
        """Removes the kept answers, when what is made of them is written."""
        shutil.rmtree(self.work_dir, ignore_errors=True)

    async def _scores(self, judge: GroupJudge, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        scores: list[list[float]] = []
        with tqdm(total=len(requests), desc="judging", unit="prompt") as bar:
            for start in range(0, len(requests), _AT_ONCE):
                part = requests[start : start + _AT_ONCE]
                found = await asyncio.gather(*(judge.scores(one.prompt, one.images, one.responses) for one in part))
                scores += map(_decided, found)
                bar.update(len(part))
        await judge.model.rest()
        return scores


def _decided(scores: Sequence[float | None]) -> list[float]:
    known = [score for score in scores if score is not None]
    return known if len(known) == len(scores) else [UNDECIDED] * len(scores)
