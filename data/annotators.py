"""Demonstrations as hasty people would give them, for a warm start that leaves reinforcement learning its work.

    python -m data.annotators --dataset_name outputs/data --output_dir outputs/demonstrations

Reads records of agent selection and writes them with the agents that an annotator would have chosen: a hasty one
names one problem and stops, the others name every right agent. Records in, records out: `trainers/sft.py` learns from
either.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from data.agent_selection import AgentSelectionRecord, as_row, load_records
from data.cli.arguments import UNNAMED, option, seed_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import SHARE
from data.io.output_folder import refuse_own_input, write_split, writing
from data.io.records import available_splits

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


def _write_demonstrations(
    folder: Path, split: str, records: list[AgentSelectionRecord], hasty: float, seed: int
) -> None:
    rng = random.Random(f"{seed} {split}")
    annotated = [annotate(record, hasty, rng) for record in records]
    base = folder.resolve()
    write_split(folder, split, [as_row(record, base) for record in annotated], load_records)
    before = sum(len(record.ground_truth_agents) for record in records)
    after = sum(len(record.ground_truth_agents) for record in annotated)
    print(f"{split}: {len(records)} demonstrations, {before - after} of {before} agents left out")


@dataclass(kw_only=True)
class AnnotatorArguments:
    """Whose right answers annotators give, and how many of them are hasty."""

    dataset_name: str = option(
        "folder with train.jsonl and validation.jsonl, or another form of records", old=("input", UNNAMED)
    )
    output_dir: Path = option("folder to write the demonstrations to")
    hasty_share: float = option("share of annotators who stop after one agent", 0.6, within=SHARE, old=("hasty",))
    seed: int = seed_option("of who is hasty")


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(AnnotatorArguments, argv)
    refuse_own_input(arguments.dataset_name, arguments.output_dir)
    source = Path(arguments.dataset_name)
    splits = available_splits(source, SPLITS) or list(SPLITS) if source.is_dir() else ["train"]
    records = {split: load_records(arguments.dataset_name, split) for split in splits}
    with writing(arguments.output_dir) as folder:
        for split in SPLITS:
            _write_demonstrations(folder, split, records.get(split, []), arguments.hasty_share, arguments.seed)


if __name__ == "__main__":
    main()
