"""Preference accuracy of a reward model, or of scores by any model, as VL-RewardBench's evaluator counts it.

    python -m rewards.reward_bench --model outputs/reward_model --dataset_name bench.parquet --output_dir outputs/bench
    python -m rewards.reward_bench --scores scores.jsonl --output_dir outputs/bench

Rows of `--dataset_name` hold `id`, `query`, `image` (or `images`), `response` and `human_ranking` (a lower rank is
better). Rows of `--scores` need no images, but `scores`, one a response. Writes `<model>_<timestamp>.jsonl` (a row a
response), `summary.json`, `calibration.png` and `scores.png`, and prints published figures beside the new ones.

Scoring with a model uses every process that `accelerate launch` starts, and goes on where it was killed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from data.cli.arguments import OptionError, option, split_option
from data.cli.commands import check_alone, command
from data.cli.locks import parse_and_hold
from data.io.records import RecordError, write_json, write_jsonl
from data.io.shards import end_processes
from data.preferences import PreferenceRecord, load_preferences
from models.model_paths import model_option
from rewards.preferences.accuracy import GROUPS, distinct_items, preference_accuracy
from rewards.preferences.calibration import calibration, draw_calibration, draw_scores, score_summary
from rewards.preferences.published import published_table
from rewards.preferences.scored import ScoredPreference, equal_ranks, load_scored_preferences
from rewards.scoring.model_scores import ScoreRequest, ScoringArguments, StoredScores, prompt_text


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def response_rows(preferences: Sequence[ScoredPreference]) -> Iterator[dict]:
    """One row a response: `rank` 0 has the highest score; equal scores share a rank."""
    for preference in preferences:
        for index, score in enumerate(preference.scores):
            yield {
                "id": preference.id,
                "response_index": index,
                "score": score,
                "rank": sum(other > score for other in preference.scores),
                "human_rank": _whole(preference.human_ranking[index]),
            }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def format_summary(summary: dict) -> str:
    """Groups, overall and macro as a text table, in percent."""
    titles = ("accuracy", "95% interval", "decided", "ties", "pairs", "strict")
    lines = [f"{'group':<16}" + "".join(f"{title:>16}" for title in titles)]
    lines.append("-" * len(lines[0]))
    rows = {group: summary["groups"][group] for group in GROUPS}
    rows["overall"] = {
        "accuracy": summary["overall"],
        "wilson": summary["overall_wilson"],
        "count": summary["count"],
        "ties": summary["ties"],
        "n": summary["items"],
        "strict_accuracy": summary["strict_overall"],
    }
    for name, row in rows.items():
        interval = "-" if row["wilson"] is None else " to ".join(_percent(bound) for bound in row["wilson"])
        cells = (_percent(row["accuracy"]), interval, row["count"], row["ties"], row["n"])
        lines.append(f"{name:<16}" + "".join(f"{cell:>16}" for cell in (*cells, _percent(row["strict_accuracy"]))))
    strict = _percent(summary["strict_macro"])
    lines.append(f"{'macro':<16}{_percent(summary['macro']):>16}{'':>64}{strict:>16}")
    lines.append("")
    lines.append(f"coverage {_percent(summary['coverage'])}% (pairs that are no ties; strict counts ties as wrong)")
    empty = [group for group in GROUPS if group not in summary["macro_groups"]]
    if empty:
        lines.append(f"no decided pair in {', '.join(empty)}: macro is the mean of the other groups")
    skipped = {
        "duplicates": "repeated pairs left out",
        "equal_ranks": "pairs of responses of equal rank left out",
        "bad_rows": "unusable rows left out",
    }
    lines += [f"{summary[key]:,} {text}" for key, text in skipped.items() if summary.get(key)]
    return "\n".join(lines)


def summarise(preferences: Sequence[ScoredPreference], source: str) -> dict:
    """The content of `summary.json`.

    Raises:
        RecordError: no two responses of unequal rank.
    """
    pairs = [pair for preference in preferences for pair in preference.pairs()]
    if not pairs:
        raise RecordError([f"{source}: field 'human_ranking': no row has two responses of unequal rank"])
    items = distinct_items(pairs)
    return {
        **preference_accuracy(pairs),
        "rows": len(preferences),
        "equal_ranks": equal_ranks(preferences),
        "scores": score_summary(items),
        "calibration": calibration(items),
    }


def write_evaluation(preferences: Sequence[ScoredPreference], summary: dict, name: str, output_dir: Path) -> None:
    """All files; nothing of an earlier evaluation is overwritten but its summary and pictures."""
    items = distinct_items(pair for preference in preferences for pair in preference.pairs())
    rows = output_dir / f"{name}_{datetime.now():%Y%m%d-%H%M%S}.jsonl"
    write_jsonl(rows, response_rows(preferences))
    draw_calibration(items, name, output_dir / "calibration.png")
    draw_scores(items, name, output_dir / "scores.png")
    write_json(output_dir / "summary.json", {"model": name, "responses": rows.name, **summary})


def _score_with_model(
    records: Sequence[PreferenceRecord], stored: StoredScores, source: str
) -> list[ScoredPreference] | None:
    """Preferences with scores, on the main process; `None` on the others."""
    requests = [ScoreRequest(record.prompt(), tuple(record.images), tuple(record.response)) for record in records]
    scores = stored.score(requests, source)
    if scores is None:
        return None
    return [
        ScoredPreference(
            id=record.id,  # type: ignore[arg-type]  # `load_preferences` numbers those without one
            query=prompt_text(record.prompt()),
            response=record.response,
            human_ranking=record.human_ranking,
            scores=row,
        )
        for record, row in zip(records, scores, strict=True)
    ]


@dataclass(kw_only=True)
class RewardBenchArguments(ScoringArguments):
    """What is evaluated: a model, or scores that are there."""

    model: str | None = model_option("reward model: folder or Hub id", None)
    dataset_name: str | None = option(
        "preferences: JSONL, JSON or parquet file, folder with splits, or Hub data set", None, old=("data",)
    )
    scores: str | None = option("instead of both: rows that have scores already", None)
    split: str = split_option("test")
    output_dir: Path = option("folder to write the evaluation to")
    name: str | None = option("of the model, for files and tables; by default from its path", None)
    skip_bad_rows: bool = option("count unusable rows of dataset_name instead of stopping", False)

    def __post_init__(self):
        if bool(self.scores) == bool(self.model) or bool(self.model) != bool(self.dataset_name):
            raise OptionError("give either --model and --dataset_name, or --scores")


def _report(
    preferences: Sequence[ScoredPreference], left_out: dict[str, int], name: str, source: str, output_dir: Path
) -> None:
    summary = summarise(preferences, source) | left_out
    write_evaluation(preferences, summary, name, output_dir)
    print(format_summary(summary))
    print(f"\n{published_table(name, summary)}")
    print(f"\nwritten to {output_dir}")


def evaluate_scores(arguments: RewardBenchArguments) -> None:
    """Counts, writes and prints."""
    assert arguments.scores is not None  # or `evaluate_model` is called
    check_alone()
    preferences = load_scored_preferences(arguments.scores, arguments.split)
    name = arguments.name or Path(arguments.scores).stem
    _report(preferences, {}, name, arguments.scores, arguments.output_dir)


def evaluate_model(arguments: RewardBenchArguments) -> None:
    """The same after scoring what has no score yet."""
    assert arguments.model is not None  # as `RewardBenchArguments` demands
    assert arguments.dataset_name is not None
    name = arguments.name or Path(arguments.model).name
    records, counts = load_preferences(arguments.dataset_name, arguments.split, skip_bad_rows=arguments.skip_bad_rows)
    stored = arguments.stored_scores(arguments.model, arguments.output_dir / name)
    preferences = _score_with_model(records, stored, arguments.dataset_name)
    if preferences is not None:
        # Records whose responses all have one rank are not scored, but their pairs are left out like other ties.
        left_out = {"rows": counts.rows, "equal_ranks": counts.tied_pairs, "bad_rows": counts.skipped}
        _report(preferences, left_out, name, arguments.dataset_name, arguments.output_dir)
        stored.forget()


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(RewardBenchArguments, argv)
    (evaluate_scores if arguments.scores else evaluate_model)(arguments)
    end_processes()


if __name__ == "__main__":
    main()
