"""MR2Bench: several responses to a prompt, ranked by people; is the response of the highest score a best one?

Source: arXiv 2604.10966; yinuoyang01/multi-response-rm, README.md (0b6c8bc) and mr2rm/data/dataset.py (06c4e5b), whose
format of rows is that of the bench (yinuoy/MR2Bench on the Hub), in JSON or JSONL:

    prompt     the prompt; also called question
    responses  texts, four in the published figures
    rankings   a rank of each response, 1 is best, ties allowed
    image      path, or
    video      path of a file or of a folder of frames; none of the two for prompts of text alone

No evaluator is published. The published figures of MR2Bench-Image are multiples of 1/240 of 240 prompts: the share of
prompts whose response of the highest score is among those of the best rank, best-of-N. Where several responses share
the highest score, here each is as likely to be picked; `strict` is right only if all of them are of the best rank.
Beside stand Kendall's tau-b of scores and ranks, the mean over prompts (0 where all scores are equal), and the share
of right pairs of unequal rank (ties are wrong). Prompts whose responses all have one rank are left out and counted.
"""

from collections.abc import Iterable, Sequence

from data.io.records import field_error
from rewards.benches.base import Bench, Figures, published_field
from rewards.benches.counts import Counts, accuracy_figures, mean
from rewards.preferences.scored import ScoredPreference, all_pairs

KINDS = ("image", "video", "text")


def _convert(row: dict) -> dict:
    responses, rankings = published_field(row, "responses"), published_field(row, "rankings")
    for name, values in (("responses", responses), ("rankings", rankings)):
        if not isinstance(values, list):
            raise field_error(name, "expected a list", values)
    if len(responses) != len(rankings):
        raise field_error("rankings", f"expected a rank of each of {len(responses)} responses", rankings)
    media = {name: row.get(name) or None for name in ("video", "image")}
    return {
        **{name: row[name] for name in ("id",) if name in row},
        "query": row["question"]
        if row.get("prompt") is None and "question" in row
        else published_field(row, "prompt"),
        "images": [] if media["image"] is None else [media["image"]],
        "video": media["video"],
        "response": responses,
        "human_ranking": rankings,
        "category": next((name for name, value in media.items() if value is not None), "text"),
        "scores": row.get("scores"),
    }


def _share_of_best(preference: ScoredPreference) -> float:
    """Of the responses of the highest score, the share that has the best rank."""
    picked = [
        rank
        for rank, score in zip(preference.human_ranking, preference.scores, strict=True)
        if score == max(preference.scores)
    ]
    return picked.count(min(preference.human_ranking)) / len(picked)


def _counts(shares: Sequence[float]) -> Counts:
    undecided = [share for share in shares if 0 < share < 1]
    return Counts(
        len(shares), len(shares) - len(undecided), sum(share == 1 for share in shares), mean(undecided) or 0.0
    )


def _tau(preference: ScoredPreference) -> float:
    from scipy.stats import kendalltau  # takes longer to import than `--help` may

    if len(set(preference.scores)) == 1:
        return 0.0
    return float(kendalltau(preference.scores, [-rank for rank in preference.human_ranking]).statistic)


def _further(preferences: Iterable[ScoredPreference]) -> Figures:
    rows = list(preferences)
    return {
        "kendall": mean(map(_tau, rows)),
        "pair_accuracy": mean(float(pair.gap > 0) for pair in all_pairs(rows)),
    }


def _figures(preferences: Sequence[ScoredPreference]) -> Figures:
    ranked = [row for row in preferences if len(set(row.human_ranking)) > 1]
    kinds = {kind: [row for row in ranked if row.category == kind] for kind in KINDS}
    groups = {kind: _counts([_share_of_best(row) for row in rows]) for kind, rows in kinds.items() if rows}
    figures = accuracy_figures(groups, _counts([_share_of_best(row) for row in ranked]), list(groups))
    for kind, group in figures["groups"].items():
        group |= _further(kinds[kind])
    return figures | _further(ranked)


MR2BENCH = Bench(
    name="mr2bench",
    title="MR2Bench",
    fields=frozenset({"responses", "rankings"}),
    convert=_convert,
    names={"query": "prompt", "images": "image", "response": "responses", "human_ranking": "rankings"},
    figures=_figures,
    columns=(("kendall", "tau x 100"), ("pair_accuracy", "pairs")),
    unit="prompts",
    numbered=True,
)
