"""How well a VLM answers when it is shown examples, by the way in which they are chosen.

    python -m rollouts.in_context --dataset_name outputs/vqa --split test --pools outputs/pools/test.jsonl \\
        --query_table outputs/test.safetensors --example_table outputs/train.safetensors --model outputs/vlm \\
        --methods zero_shot random image_text_similarity rce=outputs/rce --shots 1 2 4 --best_of 64 \\
        --output_dir outputs/evaluation

Methods: zero_shot, random (from each query's pool), random_fixed (the same examples for every query),
image_similarity, text_similarity, image_text_similarity (cosines within the pool), and NAME=SELECTOR: a model or the
folder of a run. Writes every answer, `summary.json` and `accuracy.png`; prints a table with intervals. Started again
after it was stopped, it goes on. See docs/in_context_evaluation.md.
"""

from dataclasses import dataclass
from pathlib import Path

from data.cli.arguments import OptionError, limit_option, option, seed_option, split_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_0, AT_LEAST_1
from data.io.records import RecordError
from data.io.shards import end_processes, process_state
from rollouts.frozen_vlm.arguments import ServedVLMArguments


@dataclass(kw_only=True)
class InContextArguments(ServedVLMArguments):
    """Which queries are answered, and how the examples that are shown are chosen."""

    dataset_name: str = option("the queries: VQA records, file or folder or Hub data set", old=("dataset",))
    split: str = split_option("test")
    examples: str | None = option("what is shown: VQA records; by default dataset_name", None)
    examples_split: str = option("split of examples", "train")
    pools: Path | None = option("candidate pools of the queries, over the examples", None)
    pool_size: int | None = option(
        "instead of pools: this many random examples for each query", None, within=AT_LEAST_1
    )
    query_table: Path | None = option("embeddings of the queries (rollouts.embeddings)", None)
    example_table: Path | None = option("embeddings of the examples, by the same encoders", None)
    methods: tuple[str, ...] = option("names, and NAME=SELECTOR")
    shots: tuple[int, ...] = option(
        "numbers of examples shown; none are the method zero_shot", (1, 2, 4), within=AT_LEAST_1
    )
    best_of: int = option("also the best of so many random sets a query", 0, within=AT_LEAST_0)
    limit: int | None = limit_option("queries")
    seed: int = seed_option("of random choices and pools")
    output_dir: Path = option("folder to write answers and figures to")

    def __post_init__(self):
        if (self.pools is None) == (self.pool_size is None):
            raise OptionError("give either --pools or --pool_size")
        self.shots = tuple(sorted(set(self.shots)))


def evaluate(arguments: InContextArguments) -> None:
    """Reads and checks everything, asks the VLM, and reports."""
    from rollouts.example_selection.data import load_selection_data, load_tables
    from rollouts.example_selection.selection_methods import parse_methods

    methods = parse_methods(arguments.methods)
    server = arguments.server()
    data = load_selection_data(
        (arguments.dataset_name, arguments.split),
        (arguments.examples or arguments.dataset_name, arguments.examples_split),
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
            raise RecordError([f"--query_table and --example_table are needed by {names}"])
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
    answers = arguments.answer_cache or arguments.output_dir / "answer_cache"
    evaluation.answer(open_answer_book(arguments, answers, server))
    if state.is_main_process:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
        with writing(arguments.output_dir) as folder:
            summary = write_report(evaluation, folder, settings)
        print(format_summary(summary))
        print(f"\nwritten to {arguments.output_dir}")


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    evaluate(parse_and_hold(InContextArguments, argv))
    end_processes()


if __name__ == "__main__":
    main()
