"""Rollouts by vLLM beside those of transformers: tokens a second on a CPU, in one process.

    .venv-vllm/bin/python benchmarks/vllm/rollouts.py [--prompts 1] [--rounds 5] [--new_tokens 64]

Both sides sample for the same trainer settings from the same Qwen2-VL with random weights in float32: width 512, 256
visual tokens a prompt, 8 completions of it, all of one length. Sides take turns, in an order that rotates, on images
that were not seen before; transformers runs each prompt once for its completions (docs/shared_prefix.md), as vLLM
does. vLLM compiles nothing (`enforce_eager`), and its linear layers are torch's. What it takes to send the weights is
measured apart. Prints medians and ranges; `make test-vllm` makes the environment.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[2])

from benchmarks.vllm.cpu import EAGER, ENVIRONMENT
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1

SIDE = 256  # pixels; 16 of them are one visual token
VISUAL = 256
G = 8


@dataclass(kw_only=True)
class RolloutBenchmark:
    """How much is sampled, and how often."""

    prompts: int = option("with an image each, 8 completions of each", 1, within=AT_LEAST_1)
    new_tokens: int = option("of a completion", 64, within=AT_LEAST_1)
    width: int = option("of the model", 512, within=AT_LEAST_1)
    rounds: int = option("how often both sides are measured", 5, within=AT_LEAST_1)


def make_trainer(folder: Path, new_tokens: int, rows: int, by_vllm: bool):
    from datasets import Dataset

    from models.families.loading import load_processor
    from trainers.grpo import GRPOConfig, GRPOTrainer

    whole = {"ignore_eos": True} if by_vllm else {"min_new_tokens": new_tokens}
    engine = {"vllm_gpu_memory_utilization": 0.05, "vllm_max_model_length": 1024, "vllm_kwargs": EAGER}
    args = GRPOConfig(
        output_dir=str(folder / "run"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        num_generations=G,
        per_device_train_batch_size=rows,
        max_completion_length=new_tokens,
        generation_kwargs=whole,
        model_init_kwargs={"dtype": "float32"},
        use_vllm=by_vllm,
        **(engine if by_vllm else {}),
    )
    return GRPOTrainer(
        str(folder / "model"),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}]}] * rows),
        processing_class=load_processor(str(folder / "model"), max_pixels=SIDE * SIDE),
    )


def make_prompts(count: int, seed: int) -> list:
    """Each prompt with an image of its own, as often as it is answered."""
    from PIL import Image

    drawn = random.Random(seed)
    images = [Image.frombytes("RGB", (SIDE, SIDE), drawn.randbytes(3 * SIDE * SIDE)) for _ in range(count)]
    content = [[{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}] for image in images]
    return [[{"role": "user", "content": parts}] for parts in content for _ in range(G)]


def seconds(trainer, prompts: list, new_tokens: int) -> float:
    """Of one rollout; tokenizing and the pixels of transformers' processor, which vLLM has inside, are part of it."""
    start = time.perf_counter()
    ids, images, fields = trainer._tokenize_prompts(prompts)
    completions, _ = trainer._generate_single_turn(ids, images, fields, G)
    taken = time.perf_counter() - start
    visual = list(ids[0]).count(trainer.processing_class.image_token_id)
    assert visual == VISUAL, visual
    assert {len(completion) for completion in completions} == {new_tokens}
    return taken


def main() -> None:
    arguments = parse_arguments(RolloutBenchmark)
    os.environ.update({**ENVIRONMENT, **os.environ})
    from models import tiny

    rows = arguments.prompts * G
    figures: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny.main(["--output_dir", str(folder / "model"), "--hidden_size", str(arguments.width)])
        sides = {"transformers": False, "vLLM": True}
        trainers = {name: make_trainer(folder, arguments.new_tokens, rows, side) for name, side in sides.items()}
        for number in range(-1, arguments.rounds):  # the first warms up, and sends the weights
            prompts, found = make_prompts(arguments.prompts, number), {}
            for name in sorted(trainers, reverse=number % 2 == 0):
                found[name] = rows * arguments.new_tokens / seconds(trainers[name], prompts, arguments.new_tokens)
            start = time.perf_counter()
            trainers["vLLM"].vllm_generation.sync_weights()
            figures.append(found | {"weights": time.perf_counter() - start})
    figures = figures[1:]
    print(
        f"\ntokens a second, medians of {len(figures)} rounds: width {arguments.width}, {VISUAL} visual tokens, ",
        end="",
    )
    print(f"{arguments.prompts} prompts x {G} completions x {arguments.new_tokens} tokens\n")
    print("| rollouts | tokens a second | range | ratio to transformers | range of ratios |\n|---|---|---|---|---|")
    for name in trainers:
        speeds = [found[name] for found in figures]
        ratios = [found[name] / found["transformers"] for found in figures]
        shown = [
            f"{statistics.median(values):{form}} | {min(values):{form}} to {max(values):{form}}"
            for values, form in ((speeds, ".0f"), (ratios, ".2f"))
        ]
        print(f"| {name} | {' | '.join(shown)} |")
    print(f"\nsending the weights: {statistics.median(found['weights'] for found in figures):.2f} s a step")


if __name__ == "__main__":
    main()
