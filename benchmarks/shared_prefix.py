"""Shared prompts beside TRL's own code: time and memory of GRPO's update, by visual tokens, completion and group.

    python benchmarks/shared_prefix.py                         # the sweep on a CPU; goes on where it was stopped
    python benchmarks/shared_prefix.py --visual 256 --completion 64 --group 8 --rounds 7
    python benchmarks/shared_prefix.py --step --rounds 5       # whole GRPO steps, with rollouts by transformers
    python benchmarks/shared_prefix.py --trainers --rounds 5   # reward model on pairs, RCE on groups of 8
    python benchmarks/shared_prefix.py --gpu Qwen/Qwen2-VL-2B-Instruct Qwen/Qwen2-VL-7B-Instruct
    python benchmarks/shared_prefix.py --gpu tiny              # in float32 on a GPU: are its kernels exact?
    python benchmarks/shared_prefix.py --gpu tiny --smoke      # the path of --gpu on a CPU

One trainer computes the same log-probabilities and gradients in turn as `trl.GRPOTrainer` does (`shared_prefix:
false` is its code) and with each prompt and image once. Both sides are warm, in one process, on pinned threads.
`tokens` is the ratio of tokens that the language model reads, G (P + C) / (P + G C). Peak memory is that of a new
process on a CPU, above the model at rest. The GPU mode has random weights of the published shape in bfloat16, LoRA
adapters and gradient checkpointing, and prints each figure as soon as it is there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py, which is not the package

import torch
from torch.nn.attention.bias import causal_lower_right

from models import prefix_attention, shared_prefix, tiny
from models.known import known_config
from trainers.grpo import GRPOConfig, GRPOTrainer

TEXT = 202
SWEEP = {"visual": (64, 256, 1024), "completion": (64, 256), "group": (2, 4, 8, 16)}


@dataclass(frozen=True)
class Case:
    """Tokens of an image, of the text around it, of a completion; completions of a prompt, and prompts."""

    visual: int
    completion: int
    group: int
    prompts: int = 1
    text: int = TEXT

    @property
    def token_ratio(self) -> float:
        """How many times as many tokens the language model reads if every row has its own prompt."""
        prompt = self.visual + self.text
        return self.group * (prompt + self.completion) / (prompt + self.group * self.completion)

    def name(self) -> str:
        return f"{self.visual} visual, {self.completion} completion, G={self.group}"


def make_inputs(case: Case, config, device: torch.device) -> dict:
    """What `_get_per_token_logps_and_entropies` takes, one square image for each prompt."""
    generator = torch.Generator().manual_seed(0)
    side = int(case.visual**0.5) * config.vision_config.spatial_merge_size
    vision = config.vision_config
    width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    prompts, completions, pixels = [], [], []
    for _ in range(case.prompts):
        before = torch.randint(0, 250, (case.text // 2,), generator=generator)
        after = torch.randint(0, 250, (case.text - case.text // 2,), generator=generator)
        prompts += [torch.cat([before, torch.full((case.visual,), config.image_token_id), after])] * case.group
        completions += list(torch.randint(0, 250, (case.group, case.completion), generator=generator))
        pixels += [torch.randn(side * side, width, generator=generator)] * case.group
    ids = torch.cat([torch.stack(prompts), torch.stack(completions)], dim=1).to(device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "logits_to_keep": case.completion,
        "pixel_values": torch.cat(pixels).to(device),
        "image_grid_thw": torch.tensor([[1, side, side]] * len(pixels), device=device),
        "num_images": [1] * len(pixels),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
    }


def make_trainer(model, processor, folder: str, **settings) -> GRPOTrainer:
    """A trainer around a model that is there; its data are not used."""
    from datasets import Dataset

    peft_config = settings.pop("peft_config", None)
    args = GRPOConfig(
        output_dir=folder,
        report_to="none",
        num_generations=2,
        per_device_train_batch_size=2,
        beta=0.0,
        freeze_vision_tower=settings.pop("freeze_vision_tower", False),
        **settings,
    )
    return GRPOTrainer(
        model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}]}] * 2),
        processing_class=processor,
        peft_config=peft_config,
    )


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def backward(trainer: GRPOTrainer, inputs: dict, shared: bool) -> torch.Tensor:
    """Forward and backward; returns the log-probabilities and leaves the gradients."""
    trainer.sharing.mode = "true" if shared else "false"
    found, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, **inputs, compute_entropy=True)
    advantages = torch.linspace(-1, 1, len(found), device=found.device).unsqueeze(1)
    (-(torch.exp(found - found.detach()) * advantages).mean()).backward()
    return found.detach()


def update(trainer: GRPOTrainer, inputs: dict, shared: bool) -> torch.Tensor:
    """Forward and backward; returns the log-probabilities."""
    found = backward(trainer, inputs, shared)
    trainer.model.zero_grad(set_to_none=True)
    return found


def gradient(trainer: GRPOTrainer, inputs: dict, shared: bool) -> torch.Tensor:
    """Of all weights that learn, one behind the other."""
    backward(trainer, inputs, shared)
    found = [one.grad.flatten().float() for one in trainer.model.parameters() if one.grad is not None]
    trainer.model.zero_grad(set_to_none=True)
    return torch.cat(found)


@torch.no_grad()
def score(trainer: GRPOTrainer, inputs: dict, shared: bool) -> torch.Tensor:
    """Log-probabilities alone, as of the old policy and the reference."""
    trainer.sharing.mode = "true" if shared else "false"
    return trainer._get_per_token_logps_and_entropies(trainer.model, **inputs)[0]


def seconds_of(function: Callable, *arguments) -> float:
    synchronise()
    started = time.perf_counter()
    function(*arguments)
    synchronise()
    return time.perf_counter() - started


def in_turn(function: Callable, trainer: GRPOTrainer, inputs: dict, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of TRL's way and of ours, one after the other, after one round that is not counted."""
    plain, ours = [], []
    for number in range(rounds + 1):
        times = seconds_of(function, trainer, inputs, False), seconds_of(function, trainer, inputs, True)
        if number:
            plain.append(times[0])
            ours.append(times[1])
    return plain, ours


# -- the sweep on a CPU -----------------------------------------------------------------------------------------------


CPU_MODEL = {"hidden_size": 512, "layers": 8, "initializer_range": 0.02, "vision_depth": 4, "vision_width": 256}


def build_cpu(folder: str) -> GRPOTrainer:
    """A Qwen2-VL of width 512 with 8 layers and a vision tower of 4 layers of width 256."""
    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 400)
    model = tiny.build_model(tokenizer, **CPU_MODEL)
    return make_trainer(
        model, tiny.build_processor(tokenizer), folder, use_cpu=True, bf16=False, gradient_checkpointing=False
    )


def resident() -> int:
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of(function: Callable, *arguments) -> int:
    """Bytes that a function adds at most to what the process has, looked at every millisecond."""
    before, largest, ended = resident(), resident(), threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(0.001):
            largest = max(largest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function(*arguments)
    ended.set()
    watcher.join()
    return largest - before


def peak_in_new_process(case: Case, shared: bool, threads: int) -> int:
    """Bytes that an update adds to a process with the model at rest."""
    command = [sys.executable, __file__, "--peak-of", json.dumps(asdict(case)), "--threads", str(threads)]
    done = subprocess.run([*command, "--shared"] if shared else command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure(case: Case, trainer: GRPOTrainer, rounds: int, threads: int) -> dict:
    inputs = make_inputs(case, trainer.model.config, torch.device("cpu"))
    difference = (update(trainer, inputs, False) - update(trainer, inputs, True)).abs().max().item()
    plain, ours = in_turn(update, trainer, inputs, rounds)
    ratios = [first / second for first, second in zip(plain, ours, strict=True)]
    memory = [peak_in_new_process(case, shared, threads) for shared in (False, True)]
    return {
        **asdict(case),
        "trl": statistics.median(plain),
        "ours": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "tokens": case.token_ratio,
        "memory": memory[1] / memory[0],
        "memory_trl": memory[0],
        "difference": difference,
        "threads": threads,
        "rounds": rounds,
    }


HEADER = """\
| visual | completion | G | TRL, s | ours, s | ratio (range) | tokens | share of tokens | peak memory, ours / TRL |
|---|---|---|---|---|---|---|---|---|"""


def table_line(found: dict) -> str:
    share = 100 * found["ratio"] / found["tokens"]
    times = f"{found['trl']:.2f} | {found['ours']:.2f}"
    ratio = f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    memory = f"{found['memory']:.2f} of {found['memory_trl'] / 1e9:.2f} GB"
    sizes = f"{found['visual']} | {found['completion']} | {found['group']}"
    return f"| {sizes} | {times} | {ratio} | {found['tokens']:.2f} | {share:.0f}% | {memory} |"


def plot(results: list[dict], path: Path) -> None:
    """Ratio over the size of the group, with what token arithmetic allows dotted."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, completion in zip(panels, SWEEP["completion"], strict=True):
        for color, visual in enumerate(SWEEP["visual"]):
            own = [one for one in results if (one["visual"], one["completion"]) == (visual, completion)]
            own.sort(key=lambda one: one["group"])
            sizes = [one["group"] for one in own]
            panel.plot(sizes, [one["ratio"] for one in own], f"C{color}o-", label=f"{visual} visual tokens")
            panel.plot(sizes, [one["tokens"] for one in own], f"C{color}:")
        panel.set(title=f"completions of {completion} tokens", xlabel="completions of a prompt", xscale="log")
        panel.set_xticks(SWEEP["group"], [str(size) for size in SWEEP["group"]])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("times as fast as TRL")
    panels[0].legend(title="dotted: ratio of tokens")
    figure.savefig(path)


def sweep(arguments: argparse.Namespace) -> None:
    path = arguments.results
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(one["visual"], one["completion"], one["group"], one["prompts"]) for one in done}
    print(HEADER)
    for one in done:
        print(table_line(one))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_cpu(folder)
        for visual in arguments.visual:
            for completion in arguments.completion:
                for group in arguments.group:
                    case = Case(visual, completion, group, arguments.prompts)
                    if (visual, completion, group, arguments.prompts) in known:
                        continue
                    found = measure(case, trainer, arguments.rounds, arguments.threads)
                    print(table_line(found), flush=True)
                    done.append(found)
                    with path.open("a") as file:
                        file.write(json.dumps(found) + "\n")
    if arguments.plot:
        plot(done, arguments.plot)


# -- whole steps, and other trainers ----------------------------------------------------------------------------------


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


def steps(arguments: argparse.Namespace) -> None:
    """Rollouts by transformers, reference, update: 256 visual tokens, completions of 64, 8 of them."""
    case = Case(arguments.visual[0], arguments.completion[0], arguments.group[0])
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
    from models.reward_model import Qwen2VLForRewardModel, Qwen2VLRewardConfig
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
    from models.loading import pixel_bounds
    from trainers.group_policies import VLMPolicy

    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 400)
    model = tiny.build_model(tokenizer, **CPU_MODEL)
    processor = tiny.build_processor(tokenizer, max_pixels=1 << 20)
    policy = VLMPolicy(processor, pixel_bounds(processor))
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


# -- a GPU ------------------------------------------------------------------------------------------------------------


def table_mask(layout, implementation, dtype, device):
    """The packed sequence's whole table as an ordinary mask, in place of two calls."""
    return prefix_attention.additive_mask(layout, dtype, device)


def no_table(queries: int, keys: int, device: torch.device):
    return causal_lower_right(queries, keys)


PATHS = ("two calls, a table for the rests", "two causal calls", "one call, a table for all")


def set_path(path: str, saved: dict) -> None:
    """Chooses how attention keeps continuations apart; the first path is the toolkit's."""
    prefix_attention._lower_right = no_table if path == PATHS[1] else saved["lower_right"]
    shared_prefix.mask_for = table_mask if path == PATHS[2] else saved["mask_for"]


def adapters():
    """LoRA on the language model."""
    from peft import LoraConfig

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    config.exclude_modules = r".*\bvisual\..*"
    return config


def build_gpu(name: str, folder: str, device: str) -> GRPOTrainer:
    """Random weights of a published shape, adapters on the language model, gradient checkpointing."""
    from transformers import AutoModelForImageTextToText

    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS)
    if name == "tiny":
        model = tiny.build_model(tokenizer).to(device)
    else:
        config = known_config(name)
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIAL_TOKENS}
        config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
        config.vision_start_token_id = ids["<|vision_start|>"]
        config.text_config.pad_token_id = config.text_config.eos_token_id = ids["<|endoftext|>"]
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    trainer = make_trainer(
        model,
        tiny.build_processor(tokenizer),
        folder,
        peft_config=adapters(),
        use_cpu=device == "cpu",
        bf16=name != "tiny",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        freeze_vision_tower=True,
    )
    trainer.model.train()
    return trainer


def peak_of(function: Callable, *arguments) -> float:
    """GB that are allocated at most while a function runs."""
    if not torch.cuda.is_available():
        return float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function(*arguments)
    return torch.cuda.max_memory_allocated() / 1e9


def median_of(function: Callable, *arguments, rounds: int) -> tuple[float, str]:
    times = [seconds_of(function, *arguments) for _ in range(rounds + 1)][1:]
    return statistics.median(times), f"{min(times):.3f} to {max(times):.3f}"


def measure_gpu(name: str, arguments: argparse.Namespace) -> None:
    """Prints a line for each way as soon as it is measured."""
    device = "cpu" if arguments.smoke else "cuda"
    case = Case(16, 8, 4, text=20) if name == "tiny" else Case(1024, 256, 8)
    where = "CPU" if arguments.smoke else torch.cuda.get_device_name()
    print(f"\n{name} on {where}, torch {torch.__version__}: {case.name()}, {case.text} text tokens", flush=True)
    print(f"the language model reads {case.token_ratio:.2f} times fewer tokens", flush=True)
    print("| way | update, s (range) | ratio | log-probs alone, s | ratio | peak memory |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_gpu(name, folder, device)
        inputs = make_inputs(case, trainer.model.config, torch.device(device))
        right, learned = score(trainer, inputs, False), gradient(trainer, inputs, False)
        saved = {"lower_right": prefix_attention._lower_right, "mask_for": shared_prefix.mask_for}
        base: tuple[float, float] = (0.0, 0.0)
        for path in ("TRL", *PATHS, "TRL again"):
            ours = not path.startswith("TRL")
            try:
                set_path(path, saved)
                difference = (score(trainer, inputs, ours) - right).abs().mean().item()
                turned = ((gradient(trainer, inputs, ours) - learned).norm() / learned.norm()).item()
                memory = peak_of(update, trainer, inputs, ours)
                times = median_of(update, trainer, inputs, ours, rounds=arguments.rounds)
                alone = median_of(score, trainer, inputs, ours, rounds=arguments.rounds)
            except Exception:  # a kernel that a device does not have is a result too
                print(
                    f"| {path} | failed: {traceback.format_exc(limit=-1).splitlines()[-1][:200]} | | | | |", flush=True
                )
                continue
            base = base if base[0] else (times[0], alone[0])
            ratios = base[0] / times[0], base[1] / alone[0]
            print(
                f"| {path} | {times[0]:.3f} ({times[1]}) | {ratios[0]:.2f} | {alone[0]:.3f} | {ratios[1]:.2f} | "
                f"{memory:.1f} GB |  off by {difference:.2e} in a log-prob (mean), by {turned:.2e} in the gradient",
                flush=True,
            )
        set_path(PATHS[0], saved)
        model = trainer.model.unload()
        del trainer, inputs
        gpu_steps(case, model, folder, arguments)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gpu_steps(case: Case, model, folder: str, arguments: argparse.Namespace) -> None:
    """Whole GRPO steps with rollouts by transformers, KL to the model without adapters, and checkpointing."""
    from transformers import Qwen2VLImageProcessor

    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS)
    processor = tiny.build_processor(tokenizer, max_pixels=1 << 20)
    if model.dtype == torch.bfloat16:  # of a published shape
        processor.image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 1 << 20})
    config = {
        "use_cpu": arguments.smoke,
        "bf16": model.dtype == torch.bfloat16,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "freeze_vision_tower": True,
        "beta": 0.04,
        "max_steps": 2 * (min(arguments.rounds, 2) + 1),
    }
    trainer, prompt = step_trainer(case, model, processor, folder, config=config, peft_config=adapters())
    callback = alternating(trainer)
    trainer.add_callback(callback)
    print(f"steps with rollouts, prompt of {prompt} tokens", flush=True)
    trainer.train()
    say_steps(callback.times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in SWEEP.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=list(values))
    parser.add_argument("--prompts", type=int, default=1, help="in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("outputs/shared_prefix.jsonl"))
    parser.add_argument("--plot", type=Path, help="SVG file")
    parser.add_argument("--gpu", nargs="+", metavar="MODEL", help="published shapes to measure on a GPU")
    parser.add_argument("--smoke", action="store_true", help="with --gpu tiny: on a CPU")
    parser.add_argument("--step", action="store_true", help="whole GRPO steps")
    parser.add_argument("--trainers", action="store_true", help="reward model and RCE")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gpu:
        for name in arguments.gpu:
            measure_gpu(name, arguments)
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_cpu(folder)
            inputs = make_inputs(Case(**json.loads(arguments.peak_of)), trainer.model.config, torch.device("cpu"))
            print(memory_of(update, trainer, inputs, arguments.shared))
        return
    if arguments.step:
        steps(arguments)
    if arguments.trainers:
        reward_pairs(arguments.rounds)
        rce_groups(arguments.rounds)
    if arguments.step or arguments.trainers:
        return
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    sweep(arguments)


if __name__ == "__main__":
    main()
