"""Stored groups as samples of a report: what the query is, what the candidates are, what the policy makes of them."""

from collections.abc import Sequence
from typing import Any

from data.candidate_groups import Candidate
from data.vqa import VqaRecord
from trainers.groups.data import StoredGroup
from trainers.report.samples import SampleGroup, message_text, right_answers


def _record(table: Any, item: Any) -> VqaRecord | None:
    """The record behind a query or example, where the selector reads records and not a table of their embeddings."""
    find = getattr(table, "record", None)
    return None if find is None else find(item)


def _query(group: StoredGroup, policy: Any) -> tuple[Sequence[dict], Sequence[Any], dict[str, str]]:
    """Prompt, images and right answers."""
    columns = group.columns or {}
    if columns.get("prompt"):
        return columns["prompt"], columns.get("images") or [], right_answers(columns)
    record = _record(getattr(policy, "queries", None), group.id)
    columns = columns if record is None else {"question": record.question, "answers": record.answers, **columns}
    text = f"query {group.id!r}" + (f": {columns['question']}" if columns.get("question") else "")
    return [{"role": "query", "content": text}], [] if record is None else record.images, right_answers(columns)


def _candidate_text(candidate: Candidate, policy: Any) -> str:
    if candidate.completion is not None:
        return candidate.completion
    shown = []
    for item in candidate.pointer or ():
        record = _record(getattr(policy, "examples", None), item)
        shown.append(str(item) if record is None else f"{item}: {record.question} {record.answers[0]}")
    answer = candidate.vqa_pred_answer
    return "\n".join(shown) + (f"\nanswered: {answer}" if answer is not None else "")


def group_sample(
    group: StoredGroup,
    policy: Any,
    likelihoods: Sequence[float],
    probabilities: Sequence[float],
    advantages: Sequence[float],
    advantage_name: str,
) -> SampleGroup:
    """A group as the report shows it.

    Args:
        policy: that was asked.
        likelihoods: log-probability of each candidate, in nats.
        probabilities: of each among the candidates.
        advantages: what the loss makes of each.
    """
    prompt, images, answers = _query(group, policy)
    scores = [
        {"reward": reward, "accuracy": accuracy, "log-probability": likelihood, "probability": probability}
        for reward, accuracy, likelihood, probability in zip(
            group.rewards, group.accuracies, likelihoods, probabilities, strict=False
        )
    ]
    if list(group.accuracies) == list(group.rewards):
        scores = [{name: value for name, value in row.items() if name != "accuracy"} for row in scores]
    return SampleGroup(
        prompt=[{"role": turn["role"], "content": message_text(turn)} for turn in prompt],
        images=images,
        completions=[_candidate_text(candidate, policy) for candidate in group.candidates],
        scores=scores,
        advantages=list(advantages),
        advantage_name=advantage_name,
        answers=answers,
    )
