"""A preference as a sample of a report: which response people chose, and whether the reward model agrees."""

from collections.abc import Sequence

from data.preferences import PreferenceRecord
from data.rows.responses import response_label
from models.reward.inputs import reward_messages
from rewards.preferences.scored import ranked_pairs
from trainers.report.samples import SampleGroup


def preference_sample(record: PreferenceRecord, scores: Sequence[float], system_prompt: str | None) -> SampleGroup:
    """A record as the report shows it.

    Args:
        scores: of its responses.
        system_prompt: of the reward model.
    """
    pairs = ranked_pairs(record.human_ranking)
    agreed = sum(scores[better] > scores[worse] for better, worse in pairs)
    words = "the chosen response scores higher" if agreed else "the chosen response does not score higher"
    if len(pairs) != 1:
        words = f"{agreed} of {len(pairs)} pairs in people's order"
    best = min(record.human_ranking)
    return SampleGroup(
        prompt=reward_messages(record.prompt(), len(record.images), "", system_prompt)[:-1],
        images=record.images,
        completions=[response_label(response) for response in record.response],
        scores=[
            {"score": score, "rank by people": rank} for score, rank in zip(scores, record.human_ranking, strict=False)
        ],
        marks=["chosen" if rank == best else "rejected" for rank in record.human_ranking],
        verdict=(agreed == len(pairs), words),
    )
