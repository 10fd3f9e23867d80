"""How fast candidates of beams are scored by a VLM, beside scoring each input from scratch.

    python benchmarks/beams.py                                # the tiny VLM on a CPU
    python benchmarks/beams.py --gpu_3b                       # Qwen2.5-VL-3B's shape, 20 queries, 64 candidates each
    python benchmarks/beams.py --gpu_3b --smoke               # the same path with a tiny model, on a CPU

Both sides score the candidates of a beam search (information gain, 2 shots, 5 beams, real easy-VQA images). Ours is
`rollouts.beams.search`. The other side takes the same (examples, query) inputs, four at a time, through the processor
and the model, and reads the answer's probability off the logits; its pace is measured on a part of them, drawn at
random, because it does not depend on their number. Scores must be equal.

On a CPU: one process, one thread, times are its CPU time; the sides take turns, and each starts with no image encoded
and nothing tokenised. Ends with status 1 if ours is not 3 times as fast, or if a score differs. With --gpu_3b the
model has the published shape and random weights (none are downloaded), images are enlarged, and times are wall-clock;
prints candidates per second and peak memory. In bfloat16 scores differ by its rounding.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py and a beams.py, which are not the modules

import torch

from data import vqa
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from data.io.images import open_image
from data.prompts import in_context_messages
from data.vqa import common_answer
from models import tiny
from models.families.published import published_config
from rollouts.beams import DEFAULT_CHUNK, Query, Scorer, images_of, search
from rollouts.frozen_vlm.engine import InContextVLM
from rollouts.frozen_vlm.requests import InContextRequest, shown_order

POOL, SHOTS, BEAMS = 64, 2, 5
SCRATCH_BATCH = 4
TARGET = 3.0
LARGEST_DIFFERENCE = 1e-4
"""Relative. Log-probabilities of float32 models agree to about 1e-5."""
PUBLISHED = "Qwen/Qwen2.5-VL-3B-Instruct"
IMAGE_SIDE = 448
"""Pixels; 256 visual tokens of Qwen2.5-VL-3B."""


def draw_queries(count: int, folder: Path) -> list[Query]:
    """Queries with pools of their own, from easy-VQA."""
    vqa.main(["--source", "easy_vqa", "--output_dir", str(folder), "--limit", "5000"])
    records = vqa.load_records(folder, "train", check_files=False)
    rng = random.Random(0)
    queries = []
    for record in rng.sample(records, count):
        pool = rng.sample([other for other in records if other.id != record.id], POOL)
        queries.append(Query(record.id, record, [other.id for other in pool], pool))
    return queries


class Noting(Scorer):
    """A `Scorer` that notes what it scored."""

    def __init__(self, vlm: InContextVLM):
        super().__init__(vlm, "info_gain")
        self.scores: dict[tuple, float] = {}

    def __call__(self, sequences):
        values = super().__call__(sequences)
        for (query, places), value in zip(sequences, values, strict=True):
            self.scores[query.id, places] = value.score
        return values


def beams_of(model, processor, queries: list[Query], tell: bool = False) -> Noting:
    """The search as `rollouts.beams` does it; returns the scorer with its notes. `tell` prints how far it is."""
    scorer = Noting(InContextVLM(model, processor))
    started = time.perf_counter()
    scorer.vlm.images.prepare(images_of(queries))
    for start in range(0, len(queries), DEFAULT_CHUNK):
        search(queries[start : start + DEFAULT_CHUNK], scorer, BEAMS, SHOTS)
        if tell:
            done = min(start + DEFAULT_CHUNK, len(queries))
            print(f"{done} queries, {len(scorer.scores)} inputs, {time.perf_counter() - started:.1f} s", flush=True)
    return scorer


def sampled_requests(scorer: Noting, queries: list[Query], keys: list[tuple]) -> list[InContextRequest]:
    """The requests behind scores."""
    by_id = {query.id: query for query in queries}
    requests = []
    for query_id, places in keys:
        query = by_id[query_id]
        shown = tuple(query.pool[place] for place in shown_order(places, scorer.construct_order))
        requests.append(InContextRequest(query.record, shown, common_answer(query.record)))
    return requests


def largest_difference(scorer: Noting, keys: list[tuple], expected: list[float]) -> float:
    """Of probabilities, relative to the expected ones."""
    return max(abs(scorer.scores[key] / score - 1) for key, score in zip(keys, expected, strict=True))


def from_scratch(model, processor, requests: Sequence[InContextRequest]) -> list[float]:
    """Probabilities of answers in batches of four, by nothing but the processor and the model's own forward."""
    scores = []
    for start in range(0, len(requests), SCRATCH_BATCH):
        batch = requests[start : start + SCRATCH_BATCH]
        texts, images = [], []
        for request in batch:
            shown = [(example.question, common_answer(example)) for example in request.examples]
            messages = in_context_messages(request.query.question, shown)
            texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            images += [open_image(image) for record in (*request.examples, request.query) for image in record.images]
        answers = [processor.tokenizer(request.answer)["input_ids"] for request in batch]
        inputs = processor(
            text=[text + request.answer for text, request in zip(texts, batch, strict=True)],
            images=images,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            log_probs = model(**inputs).logits.float().log_softmax(-1)
        for row, answer in zip(log_probs, answers, strict=True):
            places = torch.tensor(answer, device=row.device)[:, None]
            scores.append(row[-len(answer) - 1 : -1].gather(1, places).mean().exp().item())
    return scores


def timed(work: Callable[[], object], clock: Callable[[], float]) -> tuple[object, float]:
    start = clock()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, clock() - start


def build_tiny():
    """The size of the test bed's VLM: 4 visual tokens an image."""
    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 600)
    model = tiny.build_model(tokenizer, 128, 4, merge_size=4, vision_depth=3, vision_width=48)
    return model.eval(), tiny.build_processor(tokenizer, merge_size=4)


def build_published(device: str):
    """Qwen2.5-VL-3B's shape with random bfloat16 weights; images become 448 pixels wide and high."""
    from transformers import AutoModelForImageTextToText, GenerationConfig, Qwen2VLImageProcessor

    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIAL_TOKENS}
    config = published_config(PUBLISHED)
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"])
    processor = tiny.build_processor(tokenizer)
    processor.image_processor = Qwen2VLImageProcessor(
        size={"shortest_edge": IMAGE_SIDE**2, "longest_edge": IMAGE_SIDE**2}
    )
    return model.eval(), processor


def measure_paces(queries: list[Query], rounds: int, inputs: int) -> bool:
    """Prints both paces; returns whether the target is met and all scores are equal."""
    model, processor = build_tiny()
    rng = random.Random(0)
    ours, theirs, ratios, differences = [], [], [], []
    count = 0
    for number in range(rounds + 1):
        scorer, seconds = timed(lambda: beams_of(model, processor, queries), time.process_time)
        drawn = rng.sample(sorted(scorer.scores), inputs)
        requests = sampled_requests(scorer, queries, drawn)
        expected, scratch = timed(
            lambda requests=requests: from_scratch(model, processor, requests), time.process_time
        )
        differences.append(largest_difference(scorer, drawn, expected))
        if number == 0:  # a warm-up
            continue
        count = len(scorer.scores)
        ours.append(count / seconds)
        theirs.append(inputs / scratch)
        ratios.append(ours[-1] / theirs[-1])
    print(f"{len(queries)} queries, {POOL} candidates each, {SHOTS} shots, {BEAMS} beams: {count} inputs scored")
    print("| side | candidates/s | median ratio | range of ratios | target |\n|---|---|---|---|---|")
    print(f"| each input from scratch, batches of {SCRATCH_BATCH} | {statistics.median(theirs):.1f} | 1 | | |")
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"| beams | {statistics.median(ours):.1f} | {ratio:.1f} | {low:.1f} to {high:.1f} | at least {TARGET:g} |")
    largest = max(differences)
    print(f"largest relative difference of a probability over {len(differences) * inputs} inputs: {largest:.1e}")
    return ratio >= TARGET and largest < LARGEST_DIFFERENCE


def measure_published(queries: list[Query], smoke: bool, inputs: int) -> None:
    """Prints candidates per second and memory of the published shape; with `smoke`, of the tiny model."""
    model, processor = build_tiny() if smoke else build_published("cuda")
    search(queries[:1], Noting(InContextVLM(model, processor)), BEAMS, 1)  # a warm-up
    if not smoke:
        weights = torch.cuda.memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
    scorer, seconds = timed(lambda: beams_of(model, processor, queries, tell=True), time.perf_counter)
    memory = "" if smoke else f"{weights:.1f} GB | {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    drawn = random.Random(0).sample(sorted(scorer.scores), inputs)
    requests = sampled_requests(scorer, queries, drawn)
    expected, scratch = timed(lambda: from_scratch(model, processor, requests), time.perf_counter)
    largest = largest_difference(scorer, drawn, expected)
    count, images = len(scorer.scores), scorer.vlm.images.encoded
    name = "tiny" if smoke else f"{PUBLISHED}'s shape on {torch.cuda.get_device_name()}"
    print(f"{name}: {len(queries)} queries, {POOL} candidates each, {SHOTS} shots, {BEAMS} beams; {count} inputs,")
    print(f"{images} images, each encoded once, {seconds:.1f} s")
    print("| candidates/s | from scratch, batches of 4 | ratio | weights | peak memory |\n|---|---|---|---|---|")
    pace, other = count / seconds, inputs / scratch
    print(f"| {pace:.1f} | {other:.1f} | {pace / other:.1f} | {memory} |")
    print(f"largest relative difference of a probability over {inputs} inputs: {largest:.1e}")


@dataclass(kw_only=True)
class BeamBenchmark:
    """What is measured, how often."""

    queries: int | None = option("by default 4; with gpu_3b 20, with smoke 2", None, within=AT_LEAST_1)
    rounds: int = option("how often everything is measured", 5, within=AT_LEAST_1)
    inputs: int = option("scored from scratch in each round", 100, within=AT_LEAST_1)
    gpu_3b: bool = option("Qwen2.5-VL-3B's shape on a GPU", False)
    smoke: bool = option("with gpu_3b: a tiny model on the CPU", False)


def main() -> None:
    arguments = parse_arguments(BeamBenchmark)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    count = arguments.queries or (4 if not arguments.gpu_3b else 2 if arguments.smoke else 20)
    with tempfile.TemporaryDirectory() as folder:
        queries = draw_queries(count, Path(folder))
        if arguments.gpu_3b:
            measure_published(queries, arguments.smoke, arguments.inputs)
        elif not measure_paces(queries, arguments.rounds, arguments.inputs):
            sys.exit(1)


if __name__ == "__main__":
    main()
