"""Writes report and model card of a finished run again, with results on data that was held out.

    python -m trainers.report --output_dir outputs/grpo --held_out outputs/after/comparison.json

Results: `comparison.json` of `rewards.eval --compare`, `summary.json` of `rewards.reward_bench` or of
`rollouts.in_context`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from data.cli.arguments import UNNAMED, option
from data.cli.commands import command
from data.cli.locks import parse_and_hold


@dataclass(kw_only=True)
class ReportArguments:
    """Of which run, and what is added to its report."""

    output_dir: Path = option("folder of a finished run", old=(UNNAMED,))
    held_out: tuple[Path, ...] = option("results to be shown", ())


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(ReportArguments, argv)

    from trainers.report.page import add_held_out

    sys.stdout.write(f"written: {add_held_out(arguments.output_dir, arguments.held_out)}\n")


if __name__ == "__main__":
    main()
