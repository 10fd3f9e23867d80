"""Demonstrations as hasty people would give them, for a warm start that leaves reinforcement learning its work.

    python -m data.annotators outputs/data --output-dir outputs/demonstrations --hasty 0.6

Reads records of agent selection and writes them with the agents that an annotator would have chosen: a hasty one
names one problem and stops, the others name every right agent. Records in, records out: `trainers/sft.py` learns from
either.
"""

import argparse
import random
import sys
from pathlib import Path

from data.agent_selection import AgentSelectionRecord, as_row, load_records
from data.records import RecordError, write_jsonl

SPLITS = ("train", "validation")


def annotate(record: AgentSelectionRecord, hasty: float, rng: random.Random) -> AgentSelectionRecord:
    """The record as one annotator would have filled it in.

    Args:
        hasty: probability that the annotator names one of the right agents and stops.
    """
    agents = record.ground_truth_agents
    if agents and rng.random() < hasty:
        agents = [rng.choice(agents)]
    prompts = record.ground_truth_prompts
    kept = None if prompts is None else {agent: prompts[agent] for agent in agents if agent in prompts}
    return record.model_copy(update={"ground_truth_agents": agents, "ground_truth_prompts": kept})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.annotators", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", help="folder with train.jsonl and validation.jsonl, or another form of records")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--hasty", type=float, default=0.6, help="share of annotators who stop after one agent")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.hasty <= 1:
        parser.error(f"--hasty: expected 0 to 1, found {arguments.hasty}")
    base = arguments.output_dir.resolve()
    for split in SPLITS:
        try:
            records = load_records(arguments.input, split)
        except RecordError as error:
            sys.exit(f"error: {error}")
        rng = random.Random(f"{arguments.seed} {split}")
        annotated = [annotate(record, arguments.hasty, rng) for record in records]
        write_jsonl(arguments.output_dir / f"{split}.jsonl", (as_row(record, base) for record in annotated))
        before = sum(len(record.ground_truth_agents) for record in records)
        after = sum(len(record.ground_truth_agents) for record in annotated)
        print(f"{split}: {len(records)} demonstrations, {before - after} of {before} agents left out")


if __name__ == "__main__":
    main()
