"""Tells whether an update of a recipe would see what its rollout saw, and if not, why.

    vlm-posttrain doctor --config agent_selection
    vlm-posttrain doctor --config agent_selection --model outputs/sft --set max_completion_length=64
    vlm-posttrain doctor --config agent_selection --backend outputs/grpo/samples.jsonl

Rolls out a few rows as a GRPO step does, and compares tokens, images, masks and log-probabilities of both sides; of
methods that sample nothing, it looks at what they learn of prompts and given answers.
Prints a table of what was found, with cause and remedy, and ends with status 1 if anything is wrong.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.cli.arguments import OptionError, option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.package_files import RECIPES, shipped_file
from data.cli.ranges import AT_LEAST_1
from trainers.diagnosis.methods.choice import METHODS, findings_of, method_of

if TYPE_CHECKING:
    from trainers.diagnosis.findings import Finding

ROWS = 4
REPORT = "doctor.json"


@dataclass(kw_only=True)
class DoctorArguments:
    """Which recipe is looked at, and where completions come from."""

    config: Path = option("recipe of a vision-language model, also by its name")
    method: str | None = option(
        "what it trains by; by default as its first lines say, or its keys", None, choices=METHODS
    )
    model: str | None = option("checkpoint, folder or Hub id instead of the recipe's model_name_or_path", None)
    backend: str | None = option(
        "transformers, vllm, or a file: samples.jsonl of a run, or what rollouts.completions wrote; by default what "
        "the recipe samples with",
        None,
    )
    set: tuple[str, ...] = option("keys of the recipe with other values, KEY=VALUE ..", ())
    limit: int = option("rows, or groups, of the recipe's training data that are looked at", ROWS, within=AT_LEAST_1)
    output_dir: Path | None = option(f"folder to write the table to, as {REPORT}", None)

    def __post_init__(self):
        for one in self.set:
            if "=" not in one:
                raise OptionError(f"--set: expected KEY=VALUE, found {one!r}")

    def command_line(self) -> list[str]:
        """What the recipe's training script would be given."""
        words = ["--config", str(shipped_file(self.config, RECIPES))]
        if self.model is not None:
            words += ["--model_name_or_path", self.model]
        for key, _, value in (one.partition("=") for one in self.set):
            words += [f"--{key}", value]
        return words


def find(arguments: DoctorArguments) -> "Iterator[Finding]":
    """What is found of the recipe, check by check.

    Raises:
        UserError: what is wrong with recipe, data, model or stored completions.
    """
    from trainers.diagnosis.backends.choice import open_backend
    from trainers.setup.recipes import recipe_value

    words = arguments.command_line()
    keys = [key for key in ("policy", "reward_funcs", "num_generations") if recipe_value(words, key) is not None]
    method = arguments.method or method_of(Path(words[1]), keys)
    if method != "grpo" and arguments.backend is not None:
        raise OptionError(f"--backend: {method} samples nothing; leave it out")
    own = "vllm" if str(recipe_value(words, "use_vllm")).lower() == "true" else "transformers"
    backend = open_backend(arguments.backend or own, str(recipe_value(words, "model_name_or_path")))
    if method == "grpo" and backend.name != own:
        words += ["--use_vllm", str(backend.name == "vllm").lower()]
    if method == "grpo" and backend.name != "vllm" and recipe_value(words, "vllm_kwargs") is not None:
        words += ["--vllm_kwargs", "{}"]
    yield from findings_of(method, words, backend, arguments.limit)


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(DoctorArguments, argv)
    from data.io.records import write_json
    from trainers.diagnosis.findings import any_wrong, table
    from trainers.run.console import say

    findings = list(find(arguments))
    say(table(findings))
    if arguments.output_dir is not None:
        rows = [finding.as_row() for finding in findings]
        write_json(arguments.output_dir / REPORT, {"config": str(arguments.config), "findings": rows})
    say("the update sees what it should" if not any_wrong(findings) else "the update sees something else")
    sys.exit(1 if any_wrong(findings) else 0)


if __name__ == "__main__":
    main()
