"""A judge as a reward: a vision-language model that reads prompt, images and responses, and says which are better."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from models.reward.inputs import read_requests
from rewards.base import Completion, Reward, completion_text
from rewards.judging.groups import GroupJudge, figures_of
from rewards.judging.models import load_judge
from rewards.judging.settings import JudgeSettings
from rewards.scoring import columns as column_types
from rewards.scoring.asked import prompts_and_images
from rewards.scoring.columns import QUESTIONS

_LOADING = threading.Lock()


@dataclass(kw_only=True, eq=False)
class Judge(JudgeSettings, Reward):
    """What a judge says of the completions of a group, from 0 to 1: shares of wins, or a place on a scale.

    A pairwise judge compares two completions at a time, in both orders: 1 for a win in both, 0.5 where the orders
    disagree; a completion's score is its mean. A pointwise one gives each completion a score. `None` where no vote can
    be read, or the calls are spent. Prompt and images are those of `rewards/reward_model.py`. Loaded at the first use.

    Args: see `rewards.judging.settings.JudgeSettings`.
    """

    name = "judge"
    columns = QUESTIONS
    types: ClassVar = dict.fromkeys(QUESTIONS, column_types.prompt)
    optional = QUESTIONS
    text_only = False
    needs_model = True
    scores_groups = True

    def __post_init__(self):
        super().__post_init__()
        self._under_way = 0
        self._began: float | None = None
        self._logged: Counter[str] = Counter()
        self._seconds = 0.0

    @cached_property
    def _group_judge(self) -> GroupJudge:
        return GroupJudge(load_judge(self), self)

    def check_there(self) -> None:
        """Raises `ModelError` for a server that does not answer, or has no such model."""
        if self.is_served:
            self._load()

    def _load(self) -> GroupJudge:
        with _LOADING:
            return self._group_judge

    def score(self, text: str, prompt: Any = None, images: Any = None) -> float | None:
        """The score of one completion; a pairwise judge has none to compare it with."""
        return asyncio.run(self([text], prompts=[prompt], images=[images]))[0]

    async def __call__(  # type: ignore[override]
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The scores of one group."""
        asked, shown = prompts_and_images(self.name, len(completions), prompts, images, columns)
        if not completions or asked[0] is None:
            return [None] * len(completions)
        texts = [completion_text(completion) for completion in completions]
        [prompt], [pictures], _ = read_requests(asked[:1], shown[:1], texts[:1])
        self._under_way += 1
        try:
            judge = await asyncio.to_thread(self._load)  # which asks a server in an event loop of its own
            self._began = time.monotonic() if self._began is None else self._began
            return await judge.scores(prompt, pictures, texts)
        finally:
            await self._end(log_metric)

    async def _end(self, log_metric: Callable[[str, float], None] | None) -> None:
        """After the last of the groups that are judged side by side: lets connections go, and logs their figures."""
        self._under_way -= 1
        if self._under_way or self._began is None:
            return
        self._seconds += time.monotonic() - self._began
        self._began = None
        await self._group_judge.model.rest()
        counts = self._counts()
        if log_metric is not None:
            for name, figure in figures_of(counts - self._logged).items():
                log_metric(f"{self.name}/{name}", figure)
        self._logged = counts

    def _counts(self) -> Counter[str]:
        judge = self._group_judge
        return judge.seen + judge.model.counts + Counter(seconds=self._seconds)  # type: ignore[arg-type]

    def figures(self) -> dict[str, float]:
        """What it has cost so far and how far its votes agree, by name; empty before it was asked."""
        return figures_of(self._logged) if self._logged else {}
