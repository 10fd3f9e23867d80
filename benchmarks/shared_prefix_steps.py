"""Shared prompts in whole GRPO steps, in a reward model and in RCE, beside rows by themselves, on a CPU.

    python benchmarks/shared_prefix_steps.py               # steps with rollouts by transformers, without and with KL
    python benchmarks/shared_prefix_steps.py --trainers    # reward model on pairs, RCE on groups of 8

Model, clock and the other side are those of shared_prefix.py.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py, which is not the package

import torch

from benchmarks.shared_prefix import CPU_MODEL, Case, in_turn, make_inputs, pin, synchronise
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from models import tiny
from trainers.grpo import GRPOConfig, GRPOTrainer


def random_image(side: int, seed: int):
    """A noisy picture."""
    import numpy
    from PIL import Image

    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=numpy.uint8))


def text_of(tokens: int, count: Callable[[str], int]) -> str:
    """Words, so many that a prompt has `tokens` tokens, or a few fewer."""
    words = 1
    while count("what is it " * (words + 1)) <= tokens:
        words += 1
    return "what is it " * words


def alternating(trainer: GRPOTrainer):
    """A callback that makes every other optimizer step the plain way, and notes how long each takes."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def __init__(self):
            self.times: dict[str, list[float]] = {"false": [], "true": []}

        def on_step_begin(self, args, state, control, **kwargs):
            trainer.sharing.mode = "true" if state.global_step % 2 else "false"
            synchronise()
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            synchronise()
            self.times[trainer.sharing.mode].append(time.perf_counter() - self.started)

    return Callback()


def step_trainer(case: Case, model: str, processor, folder: str, **settings) -> tuple[GRPOTrainer, int]:
    """A trainer whose step is one group of the case's size, and the tokens of its prompt."""
    from datasets import Dataset

    side = int(case.visual**0.5) * processor.image_processor.merge_size * processor.image_processor.patch_size

    def count(text: str) -> int:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        return len(
            processor.tokenizer(processor.apply_chat_template(messages, add_generation_prompt=True))["input_ids"]
        )

    text = text_of(case.text, count)
    rows = [
        {"prompt": [{"role": "user", "content": text}], "images": [random_image(side, number)]} for number in range(4)
    ]
    args = GRPOConfig(
        output_dir=folder,
        report_to="none",
        num_generations=case.group,
        per_device_train_batch_size=case.group,
        max_completion_length=case.completion,
        generation_kwargs={"min_new_tokens": case.completion},
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,
        **settings.pop("config"),
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, completion_ids, **columns: [float(ids[0] % 7) for ids in completion_ids],
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        **settings,
    )
    return trainer, count(text) + case.visual - 1


def say_steps(times: dict[str, list[float]]) -> None:
    plain, ours = (times[mode][1:] for mode in ("false", "true"))  # the first of each warms up
    ratios = [first / second for first, second in zip(plain, ours, strict=True)]
    print(
        f"whole step: TRL {statistics.median(plain):.2f} s, ours {statistics.median(ours):.2f} s, "
        f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


@dataclass(kw_only=True)
class StepBenchmark:
    """Which steps."""

    trainers: bool = option("reward model and RCE", False)
    visual: int = option("visual tokens of a prompt", 256, within=AT_LEAST_1)
    completion: int = option("tokens of a completion", 64, within=AT_LEAST_1)
    group: int = option("completions of a prompt", 8, within=AT_LEAST_1)
    rounds: int = option("how often everything is measured", 5, within=AT_LEAST_1)
    threads: int = option("of the processor", 2, within=AT_LEAST_1)


def steps(arguments: StepBenchmark) -> None:
    """Rollouts by transformers, reference, update."""
    case = Case(arguments.visual, arguments.completion, arguments.group)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 400)
        tiny.build_model(tokenizer, **CPU_MODEL).save_pretrained(folder / "model")
        processor = tiny.build_processor(tokenizer, max_pixels=1 << 20)
        for beta in (0.0, 0.04):
            config = {
                "use_cpu": True,
                "bf16": False,
                "gradient_checkpointing": False,
                "beta": beta,
                "max_steps": 2 * (arguments.rounds + 1),
                "model_init_kwargs": {"dtype": "float32"},
            }
            trainer, prompt = step_trainer(case, str(folder / "model"), processor, name, config=config)
            callback = alternating(trainer)
            trainer.add_callback(callback)
            trainer.train()
            print(f"{case.name()}, prompt of {prompt} tokens, beta {beta}")
            say_steps(callback.times)


def reward_pairs(rounds: int) -> None:
    """Forward and backward of a reward model on 4 pairs."""
    from models.reward.config import Qwen2VLRewardConfig
    from models.reward.model import Qwen2VLForRewardModel
    from trainers.losses import preference_loss

    plain = tiny.build_model(tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 400), **CPU_MODEL)
    config = {key: value for key, value in plain.config.to_dict().items() if key != "model_type"}
    torch.manual_seed(0)
    model = Qwen2VLForRewardModel(Qwen2VLRewardConfig(**config))
    case = Case(256, 64, 2, prompts=4)
    inputs = make_inputs(case, model.config, torch.device("cpu"))
    for name in ("logits_to_keep", "num_images"):
        inputs.pop(name)
    own_images = dict(inputs)
    patches = inputs["image_grid_thw"][0].prod().item()
    inputs["pixel_values"] = inputs["pixel_values"].view(8, patches, -1)[::2].flatten(0, 1)
    inputs["image_grid_thw"] = inputs["image_grid_thw"][::2]
    inputs["image_index"] = inputs["row_groups"] = torch.arange(4).repeat_interleave(2)
    ranks, valid = torch.tensor([[0.0, 1.0]] * 4), torch.ones(4, 2, dtype=torch.bool)

    def run(model, plain_inputs, shared: bool) -> None:
        model.sharing.mode = "true" if shared else "false"
        scores = model(**(inputs if shared else plain_inputs)).logits.view(4, 2)
        preference_loss(scores, ranks, valid).mean().backward()
        model.zero_grad()

    say_ratio("reward model, 4 pairs, beside rows by themselves", *in_turn(run, model, own_images, rounds))
    say_ratio("  beside rows whose images alone are shared", *in_turn(run, model, inputs, rounds))


def rce_groups(rounds: int) -> None:
    """Forward and backward of RCE's policy on a group of 8 stored completions."""
    from models.families.loading import image_reader
    from trainers.groups.vlm_policy import VLMPolicy

    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 400)
    model = tiny.build_model(tokenizer, **CPU_MODEL)
    processor = tiny.build_processor(tokenizer, max_pixels=1 << 20)
    policy = VLMPolicy(processor, image_reader(processor))
    generator = torch.Generator().manual_seed(0)
    completions = torch.randint(0, 250, (8, 64), generator=generator).tolist()
    prompt = [{"role": "user", "content": "what is it " * 45}]
    batch = policy.collate(
        [{"index": 0, "prompt": prompt, "images": [random_image(256, 0)], "completions": completions}]
    )
    case = Case(256, 64, 8, text=int(batch["attention_mask"][0].sum()) - 256 - 64)

    def run(model, batch, shared: bool) -> None:
        policy.sharing.mode = "true" if shared else "false"
        (-policy.group_log_probs(model, batch).log_probs.mean()).backward()
        model.zero_grad()

    what = f"RCE, a group of 8 ({case.text} text tokens; tokens allow {case.token_ratio:.2f})"
    say_ratio(what, *in_turn(run, model, batch, rounds))


def say_ratio(what: str, plain: list[float], ours: list[float]) -> None:
    ratios = [first / second for first, second in zip(plain, ours, strict=True)]
    print(
        f"{what}: plain {statistics.median(plain):.2f} s, ours {statistics.median(ours):.2f} s, "
        f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def main() -> None:
    arguments = parse_arguments(StepBenchmark)
    pin(arguments.threads)
    if arguments.trainers:
        reward_pairs(arguments.rounds)
        rce_groups(arguments.rounds)
    else:
        steps(arguments)


if __name__ == "__main__":
    main()
