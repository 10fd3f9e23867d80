"""How well a VLM answers when it is shown examples, by the way in which they are chosen.

    python -m rollouts.in_context --dataset outputs/vqa --split test --pools outputs/pools/test.jsonl \\
        --query-table outputs/test.safetensors --example-table outputs/train.safetensors --model outputs/vlm \\
        --methods zero_shot random image_text_similarity rce=outputs/rce --shots 1 2 4 --best-of 64 \\
        --output-dir outputs/evaluation

Methods: zero_shot, random (from each query's pool), random_fixed (the same examples for every query),
image_similarity, text_similarity, image_text_similarity (cosines within the pool), and NAME=SELECTOR: a model or the
folder of a run. Writes every answer, `summary.json` and `accuracy.png`; prints a table with intervals. Started again
after it was stopped, it goes on. See docs/in_context_evaluation.md.
"""

import argparse
from pathlib import Path

from data.cli.arguments import add_limit_argument, at_least
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.io.records import RecordError
from data.io.shards import end_processes, process_state
from rollouts.frozen_vlm.arguments import add_vlm_arguments


def evaluate(arguments: argparse.Namespace) -> None:
    """Reads and checks everything, asks the VLM, and reports."""
    from rollouts.example_selection.choices import parse_methods
    from rollouts.example_selection.data import load_selection_data, load_tables

    methods = parse_methods(arguments.methods)
    data = load_selection_data(
        (arguments.dataset, arguments.split),
        (arguments.examples or arguments.dataset, arguments.examples_split),
        arguments.pools,
        max(arguments.shots),
        pool_size=arguments.pool_size,
        limit=arguments.limit,
        seed=arguments.seed,
    )
    tables = None
    if any(method.needs_tables for method in methods):
        if arguments.query_table is None or arguments.example_table is None:
            names = ", ".join(method.name for method in methods if method.needs_tables)
            raise RecordError([f"--query-table and --example-table are needed by {names}"])
        tables = load_tables(arguments.query_table, arguments.example_table, data)

    from data.io.output_folder import writing
    from rollouts.example_selection.evaluation import Evaluation
    from rollouts.example_selection.evaluation_report import format_summary, write_report
    from rollouts.frozen_vlm.answers import open_answer_book

    state = process_state()
    evaluation = Evaluation(data, arguments.shots, arguments.construct_order, arguments.seed)
    evaluation.choose(methods, tables, arguments.device or state.device)
    if arguments.best_of:
        evaluation.choose_random_sets(arguments.best_of)
    evaluation.answer(open_answer_book(arguments, arguments.answer_cache or arguments.output_dir / "answer_cache"))
    if state.is_main_process:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
        with writing(arguments.output_dir) as folder:
            summary = write_report(evaluation, folder, settings)
        print(format_summary(summary))
        print(f"\nwritten to {arguments.output_dir}")


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rollouts.in_context", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="the queries: VQA records, file or folder or Hub data set")
    parser.add_argument("--split", default="test", help="of a folder or Hub data set")
    parser.add_argument("--examples", help="what is shown: VQA records; by default --dataset")
    parser.add_argument("--examples-split", default="train")
    pools = parser.add_mutually_exclusive_group(required=True)
    pools.add_argument("--pools", type=Path, help="candidate pools of the queries, over the examples")
    pools.add_argument("--pool-size", type=at_least(1), help="instead: this many random examples for each query")
    parser.add_argument("--query-table", type=Path, help="embeddings of the queries (rollouts.embeddings)")
    parser.add_argument("--example-table", type=Path, help="embeddings of the examples, by the same encoders")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD", help="names, and NAME=SELECTOR")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4], help="numbers of examples shown")
    parser.add_argument(
        "--best-of", type=at_least(0), default=0, metavar="N", help="also the best of N random sets a query"
    )
    add_limit_argument(parser, "queries")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of random choices and pools")
    parser.add_argument("--answer-cache", type=Path, help="folder of answers to share between runs")
    parser.add_argument("--output-dir", type=Path, required=True)
    add_vlm_arguments(parser)
    arguments = parse_and_hold(parser, argv)
    if min(arguments.shots) < 1:
        parser.error(
            f"--shots: expected at least 1, found {min(arguments.shots)}; no examples are --methods zero_shot"
        )
    arguments.shots = sorted(set(arguments.shots))
    return arguments


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    evaluate(_parse_arguments(argv))
    end_processes()


if __name__ == "__main__":
    main()
