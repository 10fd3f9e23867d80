"""Checks of prompts: the same tokens on both sides, and a template to which the answer only adds."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from trainers.diagnosis import causes
from trainers.diagnosis.findings import Finding, not_told, wrong
from trainers.diagnosis.rollout import Observed

EXAMPLE_ANSWER = "yes"


def expected_inputs(processor: Any, row: dict, **options: Any) -> Any:
    """What the model's own processor makes of a row's prompt and its images.

    Args:
        row: with `prompt`, and perhaps `images`, opened.
        options: of the chat template.
    """
    text = rendered(processor, row, add_generation_prompt=True, **options)
    images = [list(row["images"])] if row.get("images") else None  # some families take no flat list
    return processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")


def expected_ids(processor: Any, row: dict, **options: Any) -> list[int]:
    """Tokens of a row's prompt as the model's own processor writes them, those of images too."""
    return expected_inputs(processor, row, **options)["input_ids"][0].tolist()


def rendered(processor: Any, row: dict, answer: str | None = None, **options: Any) -> str:
    """The text of a row's prompt, with an answer behind it if there is one."""
    from trl.data_utils import prepare_multimodal_messages

    turns = prepare_multimodal_messages(row["prompt"], images=row.get("images") or [])
    if answer is not None:
        turns = [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return processor.apply_chat_template(turns, tokenize=False, **options)


def check_prompts(observed: Observed, processor: Any, **options: Any) -> Iterator[Finding]:
    """Token ids of sampler, update and processor beside each other, and how each row's template goes on."""
    wanted = [expected_ids(processor, row, **options) for row in observed.rows]
    yield check_bos(observed, processor)
    sides = {
        "prompt tokens of sampler and update": (
            [one.prompt_ids for one in observed.sampled],
            [observed.prompt_ids(row) for row in range(len(observed.rows))],
        ),
        "prompt tokens of update and processor": (
            [observed.prompt_ids(row) for row in range(len(observed.rows))],
            wanted,
        ),
    }
    for check, (left, right) in sides.items():
        yield compare_prompts(check, left, right, processor, wanted)
    yield check_generation_prompt(observed, processor, **options)
    yield check_round_trip(observed.rows, processor, **options)


def compare_prompts(
    check: str,
    left: Sequence[list[int] | None],
    right: Sequence[list[int]],
    processor: Any,
    wanted: Sequence[list[int]] | None = None,
) -> Finding:
    """Whether all prompts are equal, and if not, why.

    Args:
        wanted: what they should be; by default those of the right.
    """
    pairs = [
        (one, other, whole)
        for one, other, whole in zip(left, right, right if wanted is None else wanted, strict=True)
        if one is not None
    ]
    if not pairs:
        return not_told(check, "the samples are stored without token ids of their prompts")
    unequal = [pair for pair in pairs if pair[0] != pair[1]]
    if not unequal:
        return Finding(check, f"equal in {len(pairs)} of {len(pairs)} rows", "all equal")
    one, other, whole = unequal[0]
    place = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), -1)
    found = f"{len(unequal)} of {len(pairs)} rows differ, the first with {len(one)} and {len(other)} tokens"
    found += f", at token {place if place >= 0 else min(len(one), len(other))}"
    return wrong(check, found, "all equal", _why_unequal(one, other, whole, processor))


def _why_unequal(one: list[int], other: list[int], whole: list[int], processor: Any) -> causes.Cause:
    pad = image_pad(processor)
    runs = [[len(list(run)) for token, run in groupby(ids) if token == pad] for ids in (one, other)]
    texts = [[token for token, _ in groupby(ids) if token != pad] for ids in (one, other)]
    short, long = sorted([one, other], key=len)
    if long[:1] == short[:1] and long[1:] == short:
        return causes.DOUBLE_BOS
    if long == whole and len(long) - len(short) > 1 and short and short in (long[: len(short)], long[-len(short) :]):
        return causes.TRUNCATED
    if runs[0] != runs[1] and (not runs[0] or not runs[1] or len(runs[0]) != len(runs[1])):
        return causes.DROPPED_IMAGE
    if runs[0] != runs[1] and texts[0] == texts[1]:
        return causes.IMAGE_ORDER if sorted(runs[0]) == sorted(runs[1]) else causes.PIXEL_BOUNDS
    return causes.TEMPLATE


def image_pad(processor: Any) -> int | None:
    """The token that stands for a patch of an image; `None` of a model that sees none."""
    return getattr(processor, "image_token_id", None)


def check_bos(observed: Observed, processor: Any) -> Finding:
    """No prompt begins with its first token twice."""
    check = "beginning of prompts"
    bos = processor.tokenizer.bos_token_id
    prompts = [observed.prompt_ids(row) for row in range(len(observed.rows))]
    prompts += [one.prompt_ids for one in observed.sampled if one.prompt_ids is not None]
    twice = [ids for ids in prompts if bos is not None and ids[:2] == [bos, bos]]
    if twice:
        found = f"{len(twice)} of {len(prompts)} prompts begin with {processor.tokenizer.bos_token} twice"
        return wrong(check, found, "once", causes.DOUBLE_BOS)
    opened = sum(ids[:1] == [bos] for ids in prompts) if bos is not None else 0
    return Finding(check, f"{opened} of {len(prompts)} begin with a BOS token" if opened else "no BOS token", "once")


def check_generation_prompt(observed: Observed, processor: Any, **options: Any) -> Finding:
    """Prompts end by opening the turn of the assistant."""
    check = "generation prompt"
    row = observed.rows[0]
    with_opening = rendered(processor, row, add_generation_prompt=True, **options)
    without = rendered(processor, row, add_generation_prompt=False, **options)
    opening = with_opening.removeprefix(without) if with_opening.startswith(without) else ""
    if not opening.strip():
        return wrong(check, "the template opens no turn of the assistant", "an opening", causes.NO_GENERATION_PROMPT)
    ids = processor.tokenizer(opening, add_special_tokens=False)["input_ids"]
    missing = [number for number in range(len(observed.rows)) if observed.prompt_ids(number)[-len(ids) :] != list(ids)]
    if missing:
        found = f"{len(missing)} of {len(observed.rows)} prompts do not end with {opening!r}"
        return wrong(check, found, repr(opening), causes.NO_GENERATION_PROMPT)
    return Finding(check, f"every prompt ends with {opening!r}", repr(opening))


def behind_prompt(processor: Any, row: dict, answer: str, **options: Any) -> tuple[str, str] | None:
    """What the template writes of an answer, and what behind it; `None` if it does not go on from the prompt.

    The answer may begin with white space, which a model says by itself: templates of Idefics3 and SmolVLM open it with
    `Assistant:` and go on with ` yes`.

    Returns:
        Both; the answer is empty where the template writes another.
    """
    prompt = rendered(processor, row, add_generation_prompt=True, **options)
    whole = rendered(processor, row, answer, **options)
    if not whole.startswith(prompt):
        return None
    rest = whole.removeprefix(prompt)
    start = rest.find(answer)
    if start < 0 or rest[:start].strip():
        return "", rest
    return rest[: start + len(answer)], rest[start + len(answer) :]


def check_round_trip(rows: Sequence[dict], processor: Any, **options: Any) -> Finding:
    """A prompt is the beginning of the prompt with its answer, which follows it word for word."""
    check = "template with the answer"
    changed = lost = 0
    for row in rows:
        written = behind_prompt(processor, row, row.get("gold") or EXAMPLE_ANSWER, **options)
        changed += written is None
        lost += written is not None and not written[0]
    if changed or lost:
        found = f"in {changed or lost} of {len(rows)} rows the prompt {'changes' if changed else 'is not followed by'}"
        return wrong(check, f"{found} {'when the answer follows' if changed else 'the answer'}", "0", causes.NO_PREFIX)
    return Finding(check, "every prompt is the beginning of prompt and answer", "a beginning")
