"""A public bench of reward models, or preferences of one's own: figures of a reward model, or of scores by any model.

    python -m rewards.reward_bench --model outputs/reward_model --dataset_name bench.parquet --output_dir outputs/bench
    python -m rewards.reward_bench --judge http://localhost:8000/v1 --dataset_name bench.parquet --output_dir outputs
    python -m rewards.reward_bench --scores scores.jsonl --output_dir outputs/bench

Rows of `--dataset_name` are a bench's as its authors publish them (`rewards/benches/`), or hold `id`, `query`, `image`
(or `images`), `response` and `human_ranking` (a lower rank is better), and are counted by VL-RewardBench's rule. Rows
of `--scores` are the same with `scores`, one a response, and need no images. Writes `<model>_<timestamp>.jsonl` (a row
a response), `summary.json`, `calibration.png` and `scores.png`, and prints published figures beside the new ones.

`--diagnose ROWS` scores so many rows again with their images taken away, and adds a table and `diagnosis.png` of what
the model decides by.

Scoring with a model uses every process that `accelerate launch` starts, and goes on where it was killed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from data.cli.arguments import OptionError, option, split_option
from data.cli.commands import check_alone, command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_0
from data.io.records import write_json, write_jsonl
from data.io.shards import end_processes
from data.rows.responses import response_label
from models.model_paths import model_option
from rewards.benches.base import Bench, BenchRecord
from rewards.benches.published import published_table
from rewards.benches.reading import load_bench, load_scored_bench
from rewards.benches.registry import BENCHES, find_bench
from rewards.benches.summary import format_summary, summarise
from rewards.diagnosis.picture import save_diagnosis
from rewards.diagnosis.questions import Diagnosis
from rewards.diagnosis.table import format_table
from rewards.eval import choose_specs, read_recipe
from rewards.judging.stored import JudgeScores
from rewards.preferences.calibration import draw_calibration, draw_scores
from rewards.preferences.scored import ScoredPreference
from rewards.registry import build_reward
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


def write_evaluation(
    bench: Bench, preferences: Sequence[ScoredPreference], summary: dict, name: str, output_dir: Path
) -> None:
    """All files; nothing of an earlier evaluation is overwritten but its summary and pictures."""
    items = bench.pairs(preferences)
    rows = output_dir / f"{name}_{datetime.now():%Y%m%d-%H%M%S}.jsonl"
    write_jsonl(rows, response_rows(preferences))
    draw_calibration(items, name, output_dir / "calibration.png")
    draw_scores(items, name, output_dir / "scores.png")
    if summary.get("diagnosis"):
        save_diagnosis(summary["diagnosis"], name, output_dir / "diagnosis.png")
    write_json(output_dir / "summary.json", {"model": name, "responses": rows.name, **summary})


def _requests(records: Sequence[BenchRecord]) -> list[ScoreRequest]:
    return [ScoreRequest(record.prompt(), tuple(record.images), tuple(record.response)) for record in records]


def _score_with_model(
    records: Sequence[BenchRecord], stored: StoredScores | JudgeScores, source: str
) -> list[ScoredPreference] | None:
    """Preferences with scores, on the main process; `None` on the others."""
    scores = stored.score(_requests(records), source)
    if scores is None:
        return None
    return [
        ScoredPreference(
            id=record.id,  # type: ignore[arg-type]  # `load_bench` numbers those without one
            query=prompt_text(record.prompt()),
            response=[response_label(response) for response in record.response],
            human_ranking=record.human_ranking,
            scores=row,
            category=record.category,
        )
        for record, row in zip(records, scores, strict=True)
    ]


def _diagnose(
    records: Sequence[BenchRecord],
    preferences: Sequence[ScoredPreference] | None,
    limit: int,
    stored: StoredScores | JudgeScores,
    source: str,
) -> dict:
    """What the model decides by, on the main process; nothing on the others.

    Args:
        preferences: the records with scores, on the main process.
        limit: rows that are looked at, at most.
    """
    diagnosis = Diagnosis(_requests(records), [record.human_ranking for record in records], limit)
    apart = replace(stored, work_dir=stored.work_dir / "diagnosis")
    answers = apart.score(diagnosis.requests, f"{source}, images changed") if diagnosis.requests else []
    if preferences is None or answers is None:
        return {}
    scores = [preference.scores for preference in preferences]
    if isinstance(stored, JudgeScores):
        return diagnosis.figures(scores, answers, stored.order, are_log_odds=False)
    return diagnosis.figures(scores, answers)


@dataclass(kw_only=True)
class RewardBenchArguments(ScoringArguments):
    """What is evaluated: a model, or scores that are there."""

    model: str | None = model_option("reward model: folder or Hub id", None)
    dataset_name: str | None = option(
        "preferences: JSONL, JSON or parquet file, folder with splits, or Hub data set", None, old=("data",)
    )
    judge: str | None = model_option(
        "in place of --model: folder, Hub id, or http://host:port/v1 of a model that compares responses in words",
        None,
        served=True,
    )
    config: Path | None = option("recipe whose reward 'judge' says how --judge is asked, beside its model", None)
    scores: str | None = option("instead of model and data: rows that have scores already", None)
    bench: str | None = option("whose rule counts; by default told from the first row", None, choices=tuple(BENCHES))
    split: str = split_option("test")
    output_dir: Path = option("folder to write the evaluation to")
    name: str | None = option("of the model, for files and tables; by default from its path", None)
    skip_bad_rows: bool = option("count unusable rows of dataset_name instead of stopping", False)
    diagnose: int = option(
        "rows to be scored again with a blank image, another row's and none, at most; which are drawn by chance",
        0,
        within=AT_LEAST_0,
    )

    def __post_init__(self):
        named = [self.model, self.judge, self.scores]
        if sum(map(bool, named)) != 1 or bool(self.scores) == bool(self.dataset_name):
            raise OptionError("give either --model or --judge, and --dataset_name; or --scores")
        if self.diagnose and self.scores:
            raise OptionError("--diagnose needs --model or --judge: the rows are scored again with other images")
        if self.config and not self.judge:
            raise OptionError("--config is for --judge: it says how a judge is asked")


def _report(
    bench: Bench,
    preferences: Sequence[ScoredPreference],
    further: dict[str, Any],
    name: str,
    source: str,
    output_dir: Path,
) -> None:
    summary = summarise(bench, preferences, source) | further
    write_evaluation(bench, preferences, summary, name, output_dir)
    print(f"{bench.title}\n\n{format_summary(bench, summary)}")
    print(f"\n{published_table(bench.name, name, summary)}")
    if summary.get("diagnosis"):
        print(f"\n{format_table(summary['diagnosis'])}")
    if "judge" in summary:
        print("\n" + ", ".join(f"{title} {figure:g}" for title, figure in summary["judge"].items()))
    print(f"\nwritten to {output_dir}")


def _bench(arguments: RewardBenchArguments, source: str) -> Bench:
    return BENCHES[arguments.bench] if arguments.bench else find_bench(source, arguments.split)


def evaluate_scores(arguments: RewardBenchArguments) -> None:
    """Counts, writes and prints."""
    assert arguments.scores is not None  # or `evaluate_model` is called
    check_alone()
    bench = _bench(arguments, arguments.scores)
    preferences = load_scored_bench(bench, arguments.scores, arguments.split)
    name = arguments.name or Path(arguments.scores).stem
    _report(bench, preferences, {}, name, arguments.scores, arguments.output_dir)


def _scorer(arguments: RewardBenchArguments) -> tuple[str, StoredScores | JudgeScores]:
    """Name of what scores, and how it does. A judge's server has answered."""
    if arguments.model is not None:
        name = arguments.name or Path(arguments.model).name
        return name, arguments.stored_scores(arguments.model, arguments.output_dir / name)
    recipe = read_recipe(arguments.config) if arguments.config else {}
    entry: Any = choose_specs(["judge"], recipe, "raise")[0]
    judge: Any = build_reward({**entry, "model": arguments.judge}).function
    judge.check_there()
    name = arguments.name or judge.model_name
    return name, JudgeScores(judge, arguments.work(arguments.output_dir / name), arguments.restart)


def evaluate_model(arguments: RewardBenchArguments) -> None:
    """The same after scoring what has no score yet."""
    assert arguments.dataset_name is not None  # as `RewardBenchArguments` demands
    name, stored = _scorer(arguments)
    bench = _bench(arguments, arguments.dataset_name)
    records, counts = load_bench(bench, arguments.dataset_name, arguments.split, arguments.skip_bad_rows)
    preferences = _score_with_model(records, stored, arguments.dataset_name)
    further: dict[str, Any] = {"judge": stored.figures} if isinstance(stored, JudgeScores) else {}
    if arguments.diagnose:
        found = _diagnose(records, preferences, arguments.diagnose, stored, arguments.dataset_name)
        further["diagnosis"] = found
    if preferences is not None:
        # Records whose responses all have one rank are not scored, but their pairs are left out like other ties.
        left_out = {"rows": counts.rows, "equal_ranks": counts.tied_pairs, "bad_rows": counts.skipped}
        _report(bench, preferences, left_out | further, name, arguments.dataset_name, arguments.output_dir)
        stored.forget()


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(RewardBenchArguments, argv)
    (evaluate_scores if arguments.scores else evaluate_model)(arguments)
    end_processes()


if __name__ == "__main__":
    main()
