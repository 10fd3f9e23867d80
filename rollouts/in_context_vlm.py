"""A frozen vision-language model that is shown solved examples: its answers, and the probabilities of given ones.

    vlm = InContextVLM.load("outputs/vlm")
    request = InContextRequest(query, examples=(first, second), answer="red")
    vlm.answer_probabilities([request])
    vlm.generate([request])

Requests come in any number. Equal ones are computed once; the others are batched by length. Every image is encoded
once, every example and question tokenised once. Results are those of each request by itself with the plain processor
and model, up to the rounding of floating-point sums.
"""

import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig

from data.earlier_groups import CONSTRUCT_ORDERS
from data.prompts import IN_CONTEXT_SYSTEM_PROMPT
from data.vqa import VqaRecord, common_answer
from models.generation import evaluating
from models.loading import load_processor, load_vlm, vision_token_ids
from rollouts.image_features import ImageFeatures
from rollouts.prompt_pieces import IMAGE_TOKEN, Layout, Piece, PieceMaker, lay_out

DEFAULT_BATCH_TOKENS = 16_384
DEFAULT_CACHE_BYTES = 2 * 2**30
_KEPT_PIECES = 32_768
_PROMPT_MARKS = re.compile(r"\n|Question:|Short answer:")


@dataclass(frozen=True, eq=False)
class InContextRequest:
    """A question for the VLM.

    Args:
        query: the record whose question is asked about its images.
        examples: records that are shown with their most common answer, in the order in which they are shown.
        answer: whose probability is asked for; not needed to generate.
    """

    query: VqaRecord
    examples: tuple[VqaRecord, ...] = ()
    answer: str | None = None


def shown_order(pointer: Sequence, construct_order: str) -> list:
    """Examples in the order in which they are shown.

    Args:
        pointer: examples (or their ids) in the order in which they were selected.
        construct_order: "left" puts each newly selected one before the earlier ones, "right" after them.

    >>> shown_order(["first", "second"], "left")
    ['second', 'first']
    """
    if construct_order not in CONSTRUCT_ORDERS:
        raise ValueError(f"construct order: expected one of {', '.join(CONSTRUCT_ORDERS)}, found {construct_order!r}")
    return list(reversed(pointer)) if construct_order == "left" else list(pointer)


def first_answer(text: str) -> str:
    """The answer in a generated text: what stands before a line break or before the prompt's own marks.

    Commas are kept: "red, white and blue" is one answer.

    >>> first_answer(" red, white and blue Question:what shape")
    'red, white and blue'
    """
    return _PROMPT_MARKS.split(text.strip(), maxsplit=1)[0].strip()


class InContextVLM:
    """A Qwen2-VL or Qwen2.5-VL with frozen weights, asked with examples in its prompt.

    Args:
        model, processor: see `models.loading.load_vlm`. The model is put into evaluation mode while it works.
        prompt_style: "chat" or "single_turn"; see `data.prompts.in_context_messages`.
        system_prompt: None leaves it to the chat template.
        max_batch_tokens: tokens of a batch, padding included. A longer request is a batch of its own.
        image_cache_bytes: memory for the features of images.
    """

    def __init__(
        self,
        model,
        processor,
        prompt_style: str = "chat",
        system_prompt: str | None = IN_CONTEXT_SYSTEM_PROMPT,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        image_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ):
        if max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens: expected at least 1, found {max_batch_tokens}")
        self.model, self.processor = model, processor
        self.max_batch_tokens = max_batch_tokens
        self.images = ImageFeatures(model, processor, image_cache_bytes)
        tokenizer = processor.tokenizer
        self._maker = PieceMaker(processor, prompt_style, system_prompt)
        self._pieces: OrderedDict[Hashable, tuple[Any, Piece]] = OrderedDict()
        self._language_model = next(part.language_model for part in model.modules() if hasattr(part, "language_model"))
        # Its name changed from past_key_values to cache.
        accepted = inspect.signature(self._language_model.forward).parameters
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        self._image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self._pad_id = tokenizer.pad_token_id
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._end_ids = [ends] if isinstance(ends, int) else list(ends)
        self._suppressed = vision_token_ids(tokenizer)

    @classmethod
    def load(
        cls,
        name_or_path: str,
        device=None,
        dtype: str = "auto",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **settings,
    ) -> "InContextVLM":
        """The model of a folder or Hub id, on an accelerator if there is one.

        Args:
            min_pixels, max_pixels: bounds that images are resized to; by default the processor's own.
            settings: the keyword arguments of `InContextVLM`.
        """
        model, _ = load_vlm(name_or_path, device=device, dtype=dtype)
        return cls(model, load_processor(name_or_path, min_pixels, max_pixels), **settings)

    # What is asked

    def _piece(self, record: VqaRecord, make: Callable[[VqaRecord], Piece]) -> Piece:
        """The piece of a record, made once; records are told apart by identity, which is quick."""
        key = (id(record), make.__name__)
        if key in self._pieces:
            self._pieces.move_to_end(key)
            return self._pieces[key][1]
        piece = make(record)
        self._pieces[key] = (record, piece)  # the record is kept, so that no other gets its identity
        if len(self._pieces) > _KEPT_PIECES:
            self._pieces.popitem(last=False)
        return piece

    def _images_of(self, record: VqaRecord) -> tuple[list[str], list[tuple[int, int]]]:
        keys = [self.images.key(image) for image in record.images]
        return keys, [self.images.grid(key) for key in keys]

    def _make_example(self, record: VqaRecord) -> Piece:
        return self._maker.example(record.question, common_answer(record), *self._images_of(record))

    def _make_question(self, record: VqaRecord) -> Piece:
        return self._maker.question(record.question, *self._images_of(record))

    def _make_answer(self, request: InContextRequest) -> Piece:
        text = (request.answer or "").strip()
        if not text:
            raise ValueError(f"query {request.query.id!r}: expected an answer to score, found {request.answer!r}")
        return self._answer_piece(text)

    def _answer_piece(self, text: str) -> Piece:
        key = ("answer", text)
        if key not in self._pieces:
            self._pieces[key] = (None, self._maker.answer(text))
        self._pieces.move_to_end(key)
        return self._pieces[key][1]

    def _prompt(self, request: InContextRequest) -> list[Piece]:
        examples = [self._piece(example, self._make_example) for example in request.examples]
        return [self._maker.start, *examples, self._piece(request.query, self._make_question)]

    # Probabilities

    def answer_probabilities(self, requests: Sequence[InContextRequest]) -> list[float]:
        """Geometric mean of the probabilities of exactly the answer's tokens, 0 to 1, of each request.

        The answer is stripped; neither template nor end tokens count.

        Raises:
            ValueError: a request without an answer.
        """
        return np.exp(self.answer_log_probs(requests)).tolist()

    def answer_log_probs(self, requests: Sequence[InContextRequest]) -> list[float]:
        """Mean log-probability of the answer's tokens, of each request."""
        rows, targets = [], []
        for request in requests:
            answer = self._make_answer(request)
            targets.append(tuple(answer.ids.tolist()))
            # The last token is predicted, never read.
            rows.append([*self._prompt(request), *_without_last(answer)])
        # Rows that differ in the last token of the answer alone share one pass.
        by_row: dict[tuple, dict[tuple, list[int]]] = {}
        for number, (row, target) in enumerate(zip(rows, targets, strict=True)):
            by_row.setdefault(_row_key(row), {}).setdefault(target, []).append(number)
        firsts = [next(iter(members.values()))[0] for members in by_row.values()]
        groups = list(by_row.values())
        results = [0.0] * len(requests)
        with torch.inference_mode(), evaluating(self.model):
            for batch in self._batches([rows[first] for first in firsts]):
                wanted = [[list(target) for target in groups[member]] for member in batch]
                scores = iter(self._score([rows[firsts[member]] for member in batch], wanted))
                for member in batch:
                    for numbers in groups[member].values():
                        score = next(scores)
                        for number in numbers:
                            results[number] = score
        return results

    def _score(self, rows: list[list[Piece]], targets: list[list[list[int]]]) -> list[float]:
        """Mean log-probabilities of token lists that end one token after each row's end.

        Args:
            targets: of each row, one list or several of the same length.
        """
        layout = lay_out(rows, self._pad_id)
        hidden = self._forward(layout)  # (B, L, hidden)
        row_of, column_of, token = [], [], []
        for row, (length, lists) in enumerate(zip(layout.lengths.tolist(), targets, strict=True)):
            for tokens in lists:
                row_of += [row] * len(tokens)
                column_of += range(length - len(tokens), length)
                token += tokens
        device = hidden.device
        states = hidden[torch.tensor(row_of, device=device), torch.tensor(column_of, device=device)]
        log_probs = self._head(states).float().log_softmax(-1)
        chosen = log_probs.gather(1, torch.tensor(token, device=device)[:, None])[:, 0].double().cpu().numpy()
        sizes = [len(tokens) for lists in targets for tokens in lists]
        return (np.add.reduceat(chosen, np.cumsum([0, *sizes[:-1]])) / sizes).tolist()

    # Answers

    def generate(
        self,
        requests: Sequence[InContextRequest],
        max_new_tokens: int = 5,
        num_beams: int = 1,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """What the model writes, without special tokens: the likeliest token each time, or beam search.

        Vision tokens are suppressed. Of the model's own generation settings only the end tokens are used: a
        repetition penalty would punish the words that the examples show.

        Args:
            length_penalty: of beam search; 0 compares sums of log-probabilities, 1 means.
        """
        rows = [self._prompt(request) for request in requests]
        members: dict[tuple, list[int]] = {}
        for number, row in enumerate(rows):
            members.setdefault(_row_key(row), []).append(number)
        unique = list(members.values())
        results = [""] * len(requests)
        with torch.inference_mode(), evaluating(self.model):
            for batch in self._batches([rows[numbers[0]] for numbers in unique], max_new_tokens, num_beams):
                layout = lay_out([rows[unique[member][0]] for member in batch], self._pad_id)
                if num_beams == 1:
                    tokens = self._greedy(layout, max_new_tokens)
                else:
                    tokens = self._beam_search(layout, max_new_tokens, num_beams, length_penalty)
                texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                for member, text in zip(batch, texts, strict=True):
                    for number in unique[member]:
                        results[number] = text
        return results

    first_answer = staticmethod(first_answer)

    def _greedy(self, layout: Layout, max_new_tokens: int) -> torch.Tensor:
        """New tokens of each row, (B, at most max_new_tokens), filled up after an end token."""
        cache = DynamicCache(config=self._language_model.config)
        hidden = self._forward(layout, cache)
        device = hidden.device
        rows, width = layout.ids.shape
        lengths = torch.tensor(layout.lengths, device=device)
        positions = torch.tensor(layout.ends, device=device)
        mask = torch.ones(rows, width + max_new_tokens, dtype=torch.long, device=device)
        mask[:, :width] = torch.arange(width, device=device) < lengths[:, None]  # new keys come after the padding
        last = hidden[torch.arange(rows, device=device), lengths - 1]
        ends = torch.tensor(self._end_ids, device=device)
        finished = torch.zeros(rows, dtype=torch.bool, device=device)
        tokens = []
        for step in range(max_new_tokens):
            logits = self._head(last).float()
            logits[:, self._suppressed] = -torch.inf
            token = logits.argmax(-1).masked_fill(finished, self._pad_id)
            tokens.append(token)
            finished = finished | torch.isin(token, ends)
            if step + 1 == max_new_tokens or bool(finished.all()):
                break
            last = self._language_model(
                inputs_embeds=self._embed(token[:, None]),
                position_ids=(positions + step).view(1, rows, 1).expand(3, rows, 1),
                attention_mask=mask[:, : width + step + 1],
                use_cache=True,
                **{self._cache_name: cache},
            ).last_hidden_state[:, 0]
        return torch.stack(tokens, dim=1)

    def _beam_search(self, layout: Layout, max_new_tokens: int, num_beams: int, length_penalty: float) -> torch.Tensor:
        width = layout.ids.shape[1]
        # `generate` pads on the left: rows are turned around within their width.
        columns = (np.arange(width) + layout.lengths[:, None]) % width  # (B, L)
        mask = np.arange(width) >= width - layout.lengths[:, None]
        rows = np.arange(len(columns))[:, None]
        turned = Layout(
            layout.ids[rows, columns], layout.positions[:, rows, columns], layout.lengths, layout.ends, layout.images
        )
        text_positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        device = self._embed.weight.device
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            length_penalty=length_penalty,
            do_sample=False,
            repetition_penalty=1.0,
            suppress_tokens=self._suppressed,
            eos_token_id=self._end_ids,
            pad_token_id=self._pad_id,
        )
        return self.model.generate(
            inputs_embeds=self._embeddings(turned),
            attention_mask=torch.tensor(mask, dtype=torch.long, device=device),
            position_ids=torch.tensor(np.concatenate([text_positions[None], turned.positions]), device=device),
            generation_config=settings,
        )

    # The model

    def _batches(self, rows: list[list[Piece]], new_tokens: int = 0, num_beams: int = 1) -> list[list[int]]:
        """Numbers of rows, longest first (so that memory runs out at once or never), under the token budget."""
        lengths = [sum(len(piece.ids) for piece in row) + new_tokens for row in rows]
        batches: list[list[int]] = []
        widest = 0
        for number in sorted(range(len(rows)), key=lambda number: -lengths[number]):
            if not batches or (len(batches[-1]) + 1) * widest * num_beams > self.max_batch_tokens:
                batches.append([])
                widest = lengths[number]
            batches[-1].append(number)
        return batches

    def _embeddings(self, layout: Layout) -> torch.Tensor:
        device = self._embed.weight.device
        embeds = self._embed(torch.tensor(layout.ids, device=device))
        if layout.images:
            places = np.flatnonzero(layout.ids == self._image_id)
            features = self.images(layout.images).to(device, embeds.dtype)
            embeds.view(-1, embeds.shape[-1])[torch.tensor(places, device=device)] = features
        return embeds

    def _forward(self, layout: Layout, cache: DynamicCache | None = None) -> torch.Tensor:
        """Last hidden states, (B, L, hidden). Padding stands on the right, where causal attention never looks."""
        embeds = self._embeddings(layout)
        keywords = {} if cache is None else {self._cache_name: cache}
        return self._language_model(
            inputs_embeds=embeds,
            position_ids=torch.tensor(layout.positions, device=embeds.device),
            use_cache=cache is not None,
            **keywords,
        ).last_hidden_state


def _row_key(row: Sequence[Piece]) -> tuple[bytes, ...]:
    return tuple(piece.key for piece in row)


def _without_last(answer: Piece) -> list[Piece]:
    """The answer without its last token, or nothing if it is one token."""
    count = len(answer.ids) - 1
    if count == 0:
        return []
    key = answer.ids[:-1].tobytes()
    return [Piece(key, answer.ids[:-1], answer.positions[:, :-1], answer.advance - 1)]
