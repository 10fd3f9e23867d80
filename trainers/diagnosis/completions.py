"""Checks of completions: the loss counts the tokens that were sampled, to the end token and no further."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import GenerationConfig

from models.families.loading import image_token_ids
from trainers.diagnosis import causes
from trainers.diagnosis.findings import Finding, not_told, wrong
from trainers.diagnosis.prompts import EXAMPLE_ANSWER, behind_prompt
from trainers.diagnosis.rollout import Observed


def end_ids(model: str, processor: Any, revision: str | None = None) -> set[int]:
    """Tokens that end a completion: the tokenizer's, and those of the model's generation configuration, as of Gemma.

    Args:
        model: folder or Hub id.
        revision: of a Hub repository.
    """
    try:
        told = GenerationConfig.from_pretrained(model, revision=revision).eos_token_id
    except OSError:  # it has none
        told = None
    return {processor.tokenizer.eos_token_id, *([told] if isinstance(told, int) else told or [])}


def check_completions(observed: Observed, trainer: Any, **options: Any) -> Iterator[Finding]:
    """What was sampled beside what the loss counts."""
    processor, ends = trainer.processing_class, set(trainer.eos_token_ids)
    yield check_tokens(observed)
    yield check_mask(observed, ends if trainer.mask_truncated_completions else None)
    yield check_ends(observed, ends, trainer.max_completion_length, processor.tokenizer.pad_token_id)
    yield check_closing(observed.rows[0], processor, ends, **options)
    yield check_vision_tokens(observed, processor)


def check_tokens(observed: Observed) -> Finding:
    """The update has the sampled tokens."""
    check = "sampled tokens in the update"
    batch, other = observed.batch, 0
    for number, one in enumerate(observed.sampled):
        own = batch["completion_ids"][number].tolist()
        other += own[: len(one.completion_ids)] != one.completion_ids
    count = len(observed.sampled)
    if other:
        found = f"{other} of {count} completions have other tokens"
        return wrong(check, found, "the same", causes.OTHER_TOKENS)
    if all(one.text is not None for one in observed.sampled):
        return not_told(check, "texts alone are stored; their tokens are made of them")
    return Finding(check, f"the same in {count} completions", "the same")


def check_mask(observed: Observed, left_out_without: set[int] | None) -> Finding:
    """The mask counts each sampled token, and nothing behind the end.

    Args:
        left_out_without: end tokens without one of which a completion is left out on purpose; `None` if none is.
    """
    check = "completion mask"
    batch, unequal = observed.batch, []
    for number, one in enumerate(observed.sampled):
        mask = batch["completion_mask"][number].tolist()
        length = len(one.completion_ids)
        if left_out_without is not None and one.completion_ids[-1] not in left_out_without:
            length = 0
        if mask != [1] * length + [0] * (len(mask) - length):
            unequal.append((sum(mask), length))
    if unequal:
        found = f"{len(unequal)} of {len(observed.sampled)} do not fit, the first counts {unequal[0][0]} tokens of "
        return wrong(check, f"{found}{unequal[0][1]}", "each sampled token once", causes.MASK)
    return Finding(check, f"fits {len(observed.sampled)} completions", "each sampled token once")


def check_ends(observed: Observed, ends: set[int], longest: int, pad: int | None) -> Finding:
    """Completions end with an end token, or because they are as long as they may be."""
    check = "end tokens"
    completions = [one.completion_ids for one in observed.sampled]
    if all(one.text is not None for one in observed.sampled):
        return not_told(check, "texts alone are stored")
    ended = sum(bool(ids) and ids[-1] in ends for ids in completions)
    cut = sum(len(ids) >= longest and ids[-1] not in ends for ids in completions)
    after = sum(any(token in ends for token in ids[:-1]) for ids in completions)
    said = f"{ended} of {len(completions)} end with one, {cut} are cut at {longest} tokens"
    limit = "ended or cut"
    if after:
        return wrong(check, f"{after} of {len(completions)} go on after an end token", limit, causes.MASK)
    if ended + cut < len(completions):
        return wrong(check, f"{said}, {len(completions) - ended - cut} just stop", limit, causes.NO_END)
    if cut == len(completions):
        return Finding(check, said, limit, "note", causes.NO_END)
    return Finding(check, said, limit)


def check_closing(row: dict, processor: Any, ends: set[int], **options: Any) -> Finding:
    """The token by which the template closes the assistant's turn stops sampling."""
    check = "end of the assistant's turn"
    answer = row.get("gold") or EXAMPLE_ANSWER
    _, closing = behind_prompt(processor, row, answer, **options) or ("", "")
    ids: Sequence[int] = processor.tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
    names = processor.tokenizer.convert_ids_to_tokens(sorted(ends))
    limit = f"one of {', '.join(map(str, names))}"
    if not ids:
        return wrong(check, "the template closes no turn of the assistant", limit, causes.WRONG_END)
    if ids[0] not in ends:
        return wrong(check, f"the template closes it with {closing.strip()!r}", limit, causes.WRONG_END)
    return Finding(check, f"{closing.strip()!r}", limit)


def check_vision_tokens(observed: Observed, processor: Any) -> Finding:
    """No completion holds a token that stands for a picture."""
    check = "vision tokens in completions"
    banned = set(image_token_ids(processor))
    holding = sum(bool(banned & set(one.completion_ids)) for one in observed.sampled)
    if holding:
        return wrong(check, f"in {holding} of {len(observed.sampled)} completions", "0", causes.VISION_TOKENS)
    return Finding(check, "0", "0")
