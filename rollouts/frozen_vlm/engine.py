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
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig

from data.candidates.legacy_formats import CONSTRUCT_ORDERS
from data.prompts import IN_CONTEXT_SYSTEM_PROMPT
from data.vqa import VqaRecord, common_answer
from models.families.loading import image_token_ids, load_processor, load_vlm
from models.generation import evaluating
from rollouts.frozen_vlm.image_features import ImageFeatures
from rollouts.frozen_vlm.kv_cache import KeptStates, Node, plan_waves
from rollouts.frozen_vlm.prompt_pieces import IMAGE_TOKEN, Layout, Piece, PieceMaker, lay_out

DEFAULT_BATCH_TOKENS = 8_192
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
        model, processor: see `models.families.loading.load_vlm`. The model is put into evaluation mode while it works.
        prompt_style: "chat" or "single_turn"; see `data.prompts.in_context_messages`.
        system_prompt: None leaves it to the chat template.
        max_batch_tokens: tokens of a batch, padding included. A longer request is a batch of its own.
        image_cache_bytes: memory for the features of images.
        prefix_bytes: memory for the keys and values of beginnings that prompts of a call share; 0 shares nothing.

    Attributes:
        images: features of images; `images.prepare` makes encoding many of them quicker.

    Raises:
        ValueError: a chat template that writes examples unlike each other, or layers with sliding windows.
    """

    def __init__(
        self,
        model,
        processor,
        prompt_style: str = "chat",
        system_prompt: str | None = IN_CONTEXT_SYSTEM_PROMPT,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        image_cache_bytes: int = DEFAULT_CACHE_BYTES,
        prefix_bytes: int = DEFAULT_CACHE_BYTES,
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
        if "sliding_attention" in self._language_model.config.layer_types:
            raise ValueError("expected full attention in every layer, found sliding windows (use_sliding_window)")
        # Its name changed from past_key_values to cache.
        accepted = inspect.signature(self._language_model.forward).parameters
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self._max_shared_tokens = prefix_bytes // _bytes_per_token(self._language_model)
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        self._image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self._pad_id = tokenizer.pad_token_id
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._end_ids = [ends] if isinstance(ends, int) else list(ends)
        self._suppressed = image_token_ids(processor)

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
        """The piece of a record, made once; records are identified by `id()`, which is quick."""
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
        # The last token is predicted, never read: rows that differ in it alone share one pass.
        rows: dict[tuple, tuple[list[Piece], list[Piece]]] = {}
        numbers: dict[tuple, dict[tuple[int, ...], list[int]]] = {}
        for number, request in enumerate(requests):
            answer = self._make_answer(request)
            *beginning, question = self._prompt(request)
            rest = [question, *_without_last(answer)]
            key = tuple(piece.key for piece in (*beginning, *rest))
            rows.setdefault(key, (beginning, rest))
            numbers.setdefault(key, {}).setdefault(tuple(answer.ids.tolist()), []).append(number)
        targets = [list(by_target) for by_target in numbers.values()]
        members = [list(by_target.values()) for by_target in numbers.values()]
        results = [0.0] * len(requests)
        with torch.inference_mode(), evaluating(self.model):
            for batch, done in self._run(list(rows.values())):
                scores = iter(self._score(done, [targets[row] for row in batch]))
                for row in batch:
                    for same in members[row]:
                        score = next(scores)
                        for number in same:
                            results[number] = score
        return results

    def _score(self, done: "_Pass", targets: list[list[tuple[int, ...]]]) -> list[float]:
        """Mean log-probabilities of token lists that end one token after each row's end.

        Args:
            targets: of each row, one list or several of the same length.
        """
        row_of, column_of, token = [], [], []
        for row, (length, lists) in enumerate(zip(done.layout.lengths.tolist(), targets, strict=True)):
            for tokens in lists:
                row_of += [row] * len(tokens)
                column_of += range(length - len(tokens), length)
                token += tokens
        device = done.hidden.device
        states = done.hidden[torch.tensor(row_of, device=device), torch.tensor(column_of, device=device)]
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
        members: dict[tuple, list[int]] = {}
        rows: list[list[Piece]] = []
        for number, request in enumerate(requests):
            row = self._prompt(request)
            same = members.setdefault(tuple(piece.key for piece in row), [])
            if not same:
                rows.append(row)
            same.append(number)
        numbers = list(members.values())
        results = [""] * len(requests)
        with torch.inference_mode(), evaluating(self.model):
            if num_beams == 1:
                batches = (
                    (batch, self._greedy(done, max_new_tokens))
                    for batch, done in self._run([(row[:-1], row[-1:]) for row in rows], max_new_tokens)
                )
            else:
                lengths = [num_beams * (_tokens(row) + max_new_tokens) for row in rows]
                batches = (
                    (batch, self._beam_search([rows[row] for row in batch], max_new_tokens, num_beams, length_penalty))
                    for batch in self._batches([(length, 0) for length in lengths])
                )
            for batch, tokens in batches:
                texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                for row, text in zip(batch, texts, strict=True):
                    for number in numbers[row]:
                        results[number] = text
        return results

    first_answer = staticmethod(first_answer)

    def _greedy(self, done: "_Pass", max_new_tokens: int) -> torch.Tensor:
        """New tokens of each row, (B, at most max_new_tokens), filled up after an end token."""
        device = done.hidden.device
        rows = len(done.layout.ids)
        width = done.mask.shape[1]
        # New keys come after the padding of prompts.
        mask = torch.nn.functional.pad(torch.tensor(done.mask, device=device).long(), (0, max_new_tokens), value=1)
        positions = torch.tensor(done.layout.ends, device=device)
        lengths = torch.tensor(done.layout.lengths, device=device)
        last = done.hidden[torch.arange(rows, device=device), lengths - 1]
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
                **{self._cache_name: done.cache},
            ).last_hidden_state[:, 0]
        return torch.stack(tokens, dim=1)

    def _beam_search(
        self, prompts: list[list[Piece]], max_new_tokens: int, num_beams: int, length_penalty: float
    ) -> torch.Tensor:
        layout = lay_out(prompts, self._pad_id)
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

    def _run(
        self, rows: Sequence[tuple[list[Piece], list[Piece]]], new_tokens: int = 0
    ) -> Iterator[tuple[list[int], "_Pass"]]:
        """Runs prompts in batches: (numbers of its rows, what came out) of each.

        Args:
            rows: of each prompt, the pieces that it may share with others, and those that it runs for itself.
            new_tokens: that will be generated after each.
        """
        if self._max_shared_tokens == 0:
            rows = [([], [*beginning, *rest]) for beginning, rest in rows]
        for wave in plan_waves([beginning for beginning, _ in rows], self._max_shared_tokens):
            kept = KeptStates()
            for nodes in wave.levels:
                sizes = [(node.parent.tokens if node.parent else 0, len(node.piece.ids)) for node in nodes]
                for batch in self._batches(sizes):
                    chosen = [nodes[member] for member in batch]
                    parents = [node.parent for node in chosen]
                    done = self._forward([[node.piece] for node in chosen], parents, kept, keep=True)
                    kept.add(chosen, done.cache, done.mask.shape[1] - done.layout.ids.shape[1])
            own = []
            for row, (shared, _) in zip(wave.members, wave.shared, strict=True):
                beginning, rest = rows[row]
                own.append([*beginning[shared:], *rest])
            nodes = [node for _, node in wave.shared]
            sizes = [
                (node.tokens if node else 0, _tokens(row) + new_tokens) for node, row in zip(nodes, own, strict=True)
            ]
            for batch in self._batches(sizes):
                chosen = [nodes[member] for member in batch]
                done = self._forward([own[member] for member in batch], chosen, kept, keep=new_tokens > 0)
                yield [wave.members[member] for member in batch], done

    def _batches(self, sizes: list[tuple[int, int]]) -> list[list[int]]:
        """Numbers of rows, longest first (so that memory runs out at once or never), under the token budget.

        Args:
            sizes: of each row, tokens whose keys and values are there already, and tokens to run.
        """
        batches: list[list[int]] = []
        there, here = 0, 0
        for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number][0], -sizes[number][1])):
            there, here = max(there, sizes[number][0]), max(here, sizes[number][1])
            if not batches or (len(batches[-1]) + 1) * (there + here) > self.max_batch_tokens:
                batches.append([])
                there, here = sizes[number]
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

    def _forward(
        self, rows: list[list[Piece]], beginnings: Sequence[Node | None], kept: KeptStates, keep: bool
    ) -> "_Pass":
        """Runs rows of pieces, each after its beginning.

        Padding stands on the right, where causal attention never looks; that of beginnings is masked.

        Args:
            kept: keys and values of the beginnings.
            keep: whether the cache is needed afterwards.
        """
        layout = lay_out(rows, self._pad_id, [node.advance if node else 0 for node in beginnings])
        embeds = self._embeddings(layout)
        mask = np.arange(layout.ids.shape[1]) < layout.lengths[:, None]
        keywords: dict[str, Any] = {}
        cache = None
        if keep or any(beginnings):
            cache = DynamicCache(config=self._language_model.config)
            keywords[self._cache_name] = cache
        if any(beginnings):
            real = kept.fill(cache, beginnings)
            mask = np.concatenate([real, mask], axis=1)
            if not real.all():
                keywords["attention_mask"] = torch.tensor(mask, device=embeds.device).long()
        hidden = self._language_model(
            inputs_embeds=embeds,
            position_ids=torch.tensor(layout.positions, device=embeds.device),
            use_cache=cache is not None,
            **keywords,
        ).last_hidden_state
        return _Pass(layout, hidden, mask, cache)


@dataclass(frozen=True)
class _Pass:
    """What came out of running a batch.

    Attributes:
        layout: what was run.
        hidden: last hidden states, (B, L, hidden).
        mask: which keys in the cache are real, bool (B, keys).
        cache: keys and values, if they were kept.
    """

    layout: Layout
    hidden: torch.Tensor
    mask: np.ndarray
    cache: DynamicCache | None


def _bytes_per_token(language_model) -> int:
    """Of keys and values in all layers."""
    config = language_model.config
    width = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    return 2 * config.num_hidden_layers * width * language_model.dtype.itemsize


def _tokens(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _without_last(answer: Piece) -> list[Piece]:
    """The answer without its last token, or nothing if it is one token."""
    count = len(answer.ids) - 1
    if count == 0:
        return []
    key = answer.ids[:-1].tobytes()
    return [Piece(key, answer.ids[:-1], answer.positions[:, :-1], answer.advance - 1)]
