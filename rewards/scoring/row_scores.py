"""Scores of responses by one reward of the registry or of the user: a row's responses are the group of its prompt."""

from collections.abc import Sequence
from typing import Any

from data.io.records import RecordError
from data.rows.row_images import is_image_name
from rewards.registry import RewardSpec, build_rewards, check_there
from rewards.scoring.columns import check_columns
from rewards.scoring.model_scores import ScoreRequest
from rewards.scoring.rows import score_rows

_ASKED = ("query", "prompt", "response")


def scores_by_reward(
    spec: RewardSpec, agents: Any, rows: Sequence[dict], requests: Sequence[ScoreRequest], source: str
) -> list[list[float | None]]:
    """Scores of every request's responses, in order.

    Args:
        spec, agents: as in a recipe.
        rows: as they were read; their other fields are columns of the reward.
        requests: prompt, images and responses of each row.
        source: of the rows, for messages.

    Raises:
        RecordError: a response with images, which no reward reads, or a row without a column that the reward needs.
        RewardError: the reward failed; names the row.
    """
    rewards = build_rewards([spec], agents)
    check_there(rewards)
    scored = []
    for number, (row, request) in enumerate(zip(rows, requests, strict=True)):
        if not all(isinstance(response, str) for response in request.responses):
            expected = "expected a text, found one with images, which a reward model reads (--model)"
            raise RecordError([f"{source}: row {number + 1}: field 'response': {expected}"])
        columns = {name: value for name, value in row.items() if name not in _ASKED and not is_image_name(name)}
        columns |= {"id": number, "prompt": request.prompt, "images": list(request.images)}
        scored += [{**columns, "completion": response} for response in request.responses]
    check_columns(rewards, scored, source)
    found, _ = score_rows([spec], agents, scored, rewards=rewards)
    values = iter(found[rewards[0].name])
    return [[next(values) for _ in request.responses] for request in requests]
