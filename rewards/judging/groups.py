"""The scores that a judge gives to the responses of a group: shares of wins, or one by one on a scale."""

import logging
from collections import Counter
from collections.abc import Sequence

from data.io.digests import rows_digest
from data.io.images import ImageSource
from data.rows.responses import Response, response_images
from models.reward.inputs import Prompt
from models.served.errors import CallsSpent
from rewards.judging.models import JudgeModel, Question
from rewards.judging.prompts import pairwise_messages, pointwise_messages
from rewards.judging.settings import JudgeSettings
from rewards.judging.verdicts import Scale, Verdict, read_score, read_verdict
from rewards.judging.votes import (
    Pair,
    meetings,
    outcome,
    score_of,
    share_of_a,
    shares_of_wins,
    votes_with_the_most,
)

logger = logging.getLogger(__name__)

Reply = list[str] | BaseException


class GroupJudge:
    """Asks a judge about the responses of one group after the other, or side by side.

    Attributes:
        seen: `votes`, of them `unreadable`; those on questions with `several` readable ones, of them `agreeing` with
            most; `pairs` with an outcome in both orders, of them `alike` in both; questions that `failed`, and that
            were `over_budget`.
    """

    def __init__(self, model: JudgeModel, settings: JudgeSettings):
        self.model, self.settings = model, settings
        self.seen: Counter[str] = Counter()

    async def scores(
        self, prompt: Prompt, images: Sequence[ImageSource], responses: Sequence[Response]
    ) -> list[float | None]:
        """Of each response its score from 0 to 1, `None` where no vote can be read or the calls are spent.

        Args:
            prompt: with places for its images, or without any.

        Raises:
            ServerError: no question got an answer. One that failed among others is counted, and left out.
        """
        judged = self._pairwise if self.settings.is_pairwise else self._pointwise
        try:
            return await judged(prompt, images, responses)
        except CallsSpent:
            return [None] * len(responses)

    async def _pairwise(
        self, prompt: Prompt, images: Sequence[ImageSource], responses: Sequence[Response]
    ) -> list[float | None]:
        met = meetings(len(responses), self.settings.opponents, f"{self.settings.seed} {rows_digest([responses])}")
        asked = [(one, other) for one, other in met if responses[one] != responses[other]]
        orders = [order for one, other in asked for order in ((one, other), (other, one))]
        rubric, count = self.settings.stated_rubric, len(images)
        questions = [
            Question(pairwise_messages(rubric, prompt, count, (responses[a], responses[b])), images) for a, b in orders
        ]
        shares = [share_of_a(self._read_verdicts(reply)) for reply in await self._replies(questions)]
        found: dict[Pair, float | None] = dict.fromkeys(met, 0.5)  # of equal responses
        for pair, as_given, swapped in zip(asked, shares[::2], shares[1::2], strict=True):
            found[pair] = outcome(as_given, swapped)
            if as_given is not None and swapped is not None:
                self.seen.update(pairs=1, alike=int(as_given == 1 - swapped))
        return shares_of_wins(len(responses), found)

    async def _pointwise(
        self, prompt: Prompt, images: Sequence[ImageSource], responses: Sequence[Response]
    ) -> list[float | None]:
        rubric, scale = self.settings.stated_rubric, Scale(*self.settings.scale)
        questions = [
            Question(
                pointwise_messages(rubric, prompt, len(images), response, scale), [*images, *response_images(response)]
            )
            for response in responses
        ]
        return [score_of(self._read_scores(reply, scale), scale) for reply in await self._replies(questions)]

    async def _replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Raises `CallsSpent` if one of the questions could not be asked."""
        replies = await self.model.replies(questions)
        spent = sum(isinstance(reply, CallsSpent) for reply in replies)
        failed = [reply for reply in replies if isinstance(reply, BaseException) and not isinstance(reply, CallsSpent)]
        self.seen["failed"] += len(failed)
        if spent:
            self._say_spent()
            self.seen["over_budget"] += spent
            raise CallsSpent
        if failed and len(failed) == len(replies):
            raise failed[0]
        return replies

    def _say_spent(self) -> None:
        if not self.seen["over_budget"]:
            logger.warning(
                "judge: the %d calls of max_calls are spent; groups that it has not judged have no score",
                self.settings.max_calls,
            )

    def _read_verdicts(self, reply: Reply) -> list[Verdict | None]:
        votes = [] if isinstance(reply, BaseException) else [read_verdict(text) for text in reply]
        self._count(votes)
        return votes

    def _read_scores(self, reply: Reply, scale: Scale) -> list[int | None]:
        votes = [] if isinstance(reply, BaseException) else [read_score(text, scale) for text in reply]
        self._count(votes)
        return votes

    def _count(self, votes: Sequence[Verdict | int | None]) -> None:
        self.seen.update(votes=len(votes), unreadable=votes.count(None))
        readable = len(votes) - votes.count(None)
        if readable > 1:
            self.seen.update(several=readable, agreeing=votes_with_the_most(votes))


def figures_of(counts: Counter[str]) -> dict[str, float]:
    """What a judge has cost and how far its votes agree, by name; shares of what there is none of are left out.

    Args:
        counts: of `GroupJudge.seen` and of its model.

    >>> figures_of(Counter(calls=4, votes=4, unreadable=1, pairs=2, alike=1))["order_agreement"]
    0.5
    """
    totals = ("calls", "retries", "cached", "prompt_tokens", "completion_tokens", "seconds", "failed", "over_budget")
    shares = {
        "unreadable": ("unreadable", counts["votes"]),
        "vote_agreement": ("agreeing", counts["several"]),
        "order_agreement": ("alike", counts["pairs"]),
    }
    return {
        **{name: float(counts[name]) for name in totals},
        **{name: counts[part] / whole for name, (part, whole) in shares.items() if whole},
    }
