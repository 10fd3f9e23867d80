"""A frozen vision-language model of any family that is shown solved examples, asked with whole prompts.

Its own processor reads each prompt, and its own forward and `generate` run it. `rollouts.frozen_vlm.engine` has the
same results sooner, for families whose prompts can be put together from pieces.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from data.errors import UserError
from data.io.images import ImageSource, open_image
from data.prompts import IN_CONTEXT_SYSTEM_PROMPT, in_context_messages
from data.rows.messages import message_texts
from data.vqa import common_answer
from models.decoding.engine import Engine, rolling_out
from models.families.loading import image_reader, image_token_ids, image_tokens, render, space_before_answers
from models.generation import evaluating, read_rendered
from rollouts.frozen_vlm.image_keys import ImageKeys
from rollouts.frozen_vlm.requests import (
    DEFAULT_BATCH_TOKENS,
    InContextRequest,
    first_answer,
    text_to_score,
    token_batches,
)

_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What processors make that has a column for each token."""


class ImageTokens(ImageKeys):
    """How many tokens each image becomes."""

    def __init__(self, processor: Any):
        super().__init__()
        self._reader = image_reader(processor)
        self._tokens: dict[str, int] = {}

    def _meet(self, key: str, source: ImageSource) -> None:
        self._tokens[key] = self._reader.tokens(source) + self._reader.tokens_around

    def tokens(self, key: str) -> int:
        """Of a picture, with those around it."""
        return self._tokens[key]

    def prepare(self, sources: Iterable[ImageSource]) -> None:
        """Looks at pictures before anything is asked.

        Raises:
            ImageError: an image that cannot be read.
        """
        for source in sources:
            self.key(source)


@dataclass(frozen=True, eq=False)
class _Row:
    """A prompt as it is run.

    Attributes:
        key: of its content.
        text: the rendered conversation.
        images: in the order of their places.
        answer: ids of the answer that is scored.
        tokens: how many there are, at most.
    """

    key: Hashable
    text: str
    images: list[ImageSource]
    answer: tuple[int, ...]
    tokens: int


class PlainInContextVLM:
    """A model with frozen weights, asked with examples in its prompt.

    Equal requests are computed once; the others are batched by length.

    Args:
        model, processor: see `models.families.loading.load_vlm`. The model is put into evaluation mode while it works.
        prompt_style: "chat" or "single_turn"; see `data.prompts.in_context_messages`.
        system_prompt: None leaves it to the chat template.
        max_batch_tokens: tokens of a batch, padding included. A longer request is a batch of its own.

    Attributes:
        images: gives keys of images, by content.
    """

    first_answer = staticmethod(first_answer)

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompt_style: str = "chat",
        system_prompt: str | None = IN_CONTEXT_SYSTEM_PROMPT,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ):
        if max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens: expected at least 1, found {max_batch_tokens}")
        self.model, self.processor = model, processor
        self.max_batch_tokens = max_batch_tokens
        self._keys = self.images = ImageTokens(processor)
        self._style, self._system = prompt_style, system_prompt
        self._forbidden, self._suppressed = image_tokens(processor), image_token_ids(processor)
        self._end_ids = _end_ids(model, processor.tokenizer)

    # What is asked

    def _row(self, request: InContextRequest, answer: str | None = None) -> _Row:
        records = (*request.examples, request.query)
        shown = [(example.question, common_answer(example)) for example in request.examples]
        counts = [len(record.images) for record in records]
        messages = in_context_messages(request.query.question, shown, self._style, self._system, counts)
        self._check([*message_texts(messages), answer or ""], request)
        text = render(self.processor, messages, add_generation_prompt=True)
        images = [image for record in records for image in record.images]
        keys = [self._keys.key(image) for image in images]
        ids = () if answer is None else tuple(self._ids(space_before_answers(self.processor) + answer))
        tokens = len(self._ids(text)) + sum(map(self._keys.tokens, keys)) + len(ids)
        return _Row((text, tuple(keys), ids), text, images, ids, tokens)

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _check(self, texts: Sequence[str], request: InContextRequest) -> None:
        for text in texts:
            token = next((token for token in self._forbidden if token in text), None)
            if token is not None:
                raise UserError(
                    f"query {request.query.id!r}: found {token}, which promises an image, in {text!r:.200}; neither "
                    "questions nor answers may hold it"
                )

    def _batches(
        self, requests: Sequence[InContextRequest], answers: Sequence[str | None], width: int = 1, further: int = 0
    ) -> Iterator[tuple[list[list[int]], list[_Row]]]:
        """Different rows in batches: of each row, the numbers of its requests, and the row.

        Args:
            width: sequences that are run for a row.
            further: tokens that will be generated after it.
        """
        rows: dict[Hashable, _Row] = {}
        members: dict[Hashable, list[int]] = {}
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            row = self._row(request, answer)
            rows.setdefault(row.key, row)
            members.setdefault(row.key, []).append(number)
        different = list(rows.values())
        sizes = [(0, width * (row.tokens + further)) for row in different]
        for batch in token_batches(sizes, self.max_batch_tokens):
            chosen = [different[number] for number in batch]
            yield [members[row.key] for row in chosen], chosen

    def _inputs(self, rows: Sequence[_Row]) -> Any:
        images = [[open_image(image) for image in row.images] for row in rows]
        return read_rendered(self.processor, [row.text for row in rows], images).to(self.model.device)

    # What is computed

    def answer_probabilities(self, requests: Sequence[InContextRequest]) -> list[float]:
        """Geometric mean of the probabilities of exactly the answer's tokens, 0 to 1, of each request.

        The answer is stripped; neither template nor end tokens count.

        Raises:
            ValueError: a request without an answer.
        """
        return np.exp(self.answer_log_probs(requests)).tolist()

    def answer_log_probs(self, requests: Sequence[InContextRequest]) -> list[float]:
        """Mean log-probability of the answer's tokens, of each request."""
        results = [0.0] * len(requests)
        answers = [text_to_score(request) for request in requests]
        with torch.inference_mode(), evaluating(self.model):
            for members, rows in self._batches(requests, answers):
                for numbers, score in zip(members, self._scores(rows), strict=True):
                    for number in numbers:
                        results[number] = score
        return results

    def _scores(self, rows: Sequence[_Row]) -> list[float]:
        inputs = _with_answers(self._inputs(rows), [row.answer for row in rows], self.processor.tokenizer.pad_token_id)
        longest = max(len(row.answer) for row in rows)
        logits = self.model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits
        scores = []
        for row, own in zip(rows, logits, strict=True):
            log_probs = own[-len(row.answer) - 1 : -1].float().log_softmax(-1)  # (answer, vocabulary)
            tokens = torch.tensor(row.answer, device=own.device)
            scores.append(log_probs.gather(1, tokens[:, None]).double().mean().item())
        return scores

    def generate(
        self,
        requests: Sequence[InContextRequest],
        max_new_tokens: int = 5,
        num_beams: int = 1,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """What the model writes, without special tokens: the likeliest token each time, or beam search.

        Tokens that stand for pictures are suppressed. Of the model's own generation settings only the end tokens are
        used: a repetition penalty would punish the words that the examples show.

        Args:
            length_penalty: of beam search; 0 compares sums of log-probabilities, 1 means.
        """
        return self._generate(requests, max_new_tokens, num_beams, length_penalty)

    def _generate(
        self, requests: Sequence[InContextRequest], max_new_tokens: int, num_beams: int, length_penalty: float
    ) -> list[str]:
        tokenizer = self.processor.tokenizer
        settings = self._settings(max_new_tokens, num_beams, length_penalty)
        results = [""] * len(requests)
        loop = rolling_out(self.model, Engine("auto" if num_beams == 1 else "false"))  # beams share their prompt alone
        with torch.inference_mode(), evaluating(self.model), loop:
            for members, rows in self._batches(requests, [None] * len(requests), num_beams, max_new_tokens):
                inputs = self._inputs(rows)
                output = self.model.generate(**inputs, generation_config=settings)
                texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                for numbers, text in zip(members, texts, strict=True):
                    for number in numbers:
                        results[number] = text
        return results

    def _settings(self, max_new_tokens: int, num_beams: int, length_penalty: float) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            length_penalty=length_penalty,
            do_sample=False,
            repetition_penalty=1.0,
            suppress_tokens=self._suppressed,
            eos_token_id=self._end_ids,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids of the tokens at which the model's answers end."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [ends] if isinstance(ends, int) else list(ends)


def _with_answers(inputs: Any, answers: Sequence[tuple[int, ...]], pad: int) -> dict[str, Any]:
    """The inputs of left-padded prompts with an answer at the end of each."""
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    width = max(length + len(answer) for length, answer in zip(lengths, answers, strict=True))
    extended = dict(inputs)
    for name in _OF_TOKENS:
        if name not in inputs:
            continue
        value = inputs[name]
        longer = value.new_full((len(value), width), pad if name == "input_ids" else 0)
        for row, length, answer in zip(range(len(value)), lengths, answers, strict=True):
            end = width - len(answer)
            longer[row, end - length : end] = value[row, value.shape[1] - length :]
            if name == "input_ids":
                longer[row, end:] = value.new_tensor(answer)
            elif name == "attention_mask":
                longer[row, end:] = 1
        extended[name] = longer
    return extended
