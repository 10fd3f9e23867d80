"""A frozen vision-language model that is shown solved examples: its answers, and the probabilities of given ones.

    vlm = InContextVLM.load("outputs/vlm")
    request = InContextRequest(query, examples=(first, second), answer="red")
    vlm.answer_probabilities([request])
    vlm.generate([request])

Requests come in any number. Equal ones are computed once; the others are batched by length. Every image is encoded
once, every example and question tokenised once. Results are those of each request by itself with the plain processor
and model, up to the rounding of floating-point sums. Models whose prompts cannot be put together from pieces are asked
with whole prompts (rollouts/frozen_vlm/plain_engine.py).
"""

import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from data.io.shards import process_state
from data.prompts import IN_CONTEXT_SYSTEM_PROMPT
from data.vqa import VqaRecord, common_answer
from models.families.loading import load_processor, load_vlm
from models.families.registry import family_of
from models.families.vision_hooks import vision_language_model
from models.generation import evaluating
from rollouts.frozen_vlm.image_features import ImageFeatures
from rollouts.frozen_vlm.kv_cache import KeptStates, Node, plan_waves
from rollouts.frozen_vlm.plain_engine import PlainInContextVLM
from rollouts.frozen_vlm.prompt_pieces import Layout, Piece, PieceMaker, PiecesError, lay_out, pieces_of
from rollouts.frozen_vlm.requests import (
    DEFAULT_BATCH_TOKENS,
    InContextRequest,
    text_to_score,
    token_batches,
)

DEFAULT_CACHE_BYTES = 2 * 2**30
_KEPT_PIECES = 32_768


class InContextVLM(PlainInContextVLM):
    """A model with frozen weights, asked with examples in its prompt, which is put together from pieces.

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
        PiecesError: a family of models whose prompts cannot be put together from pieces, or a chat template that
            writes examples unlike each other.
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
        super().__init__(model, processor, prompt_style, system_prompt, max_batch_tokens)
        combined = vision_language_model(model)
        self._family = pieces_of(combined)
        self.images = ImageFeatures(model, processor, image_cache_bytes)
        tokenizer = processor.tokenizer
        self._maker = PieceMaker(processor, self._family.image_block, prompt_style, system_prompt)
        self._pieces: OrderedDict[Hashable, tuple[Any, Piece]] = OrderedDict()
        self._language_model: Any = family_of(combined.config).language_model(combined)
        # Its name changed from past_key_values to cache.
        accepted = inspect.signature(self._language_model.forward).parameters
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self._max_shared_tokens = prefix_bytes // _bytes_per_token(self._language_model)
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        self._image_id = tokenizer.convert_tokens_to_ids(self._family.image_block[1])
        self._pad_id = tokenizer.pad_token_id

    @classmethod
    def load(
        cls,
        name_or_path: str,
        device=None,
        dtype: str = "auto",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **settings,
    ) -> "InContextVLM | PlainInContextVLM":
        """The model of a folder or Hub id, on an accelerator if there is one.

        One whose prompts cannot be put together from pieces is asked with whole prompts, and that is said.

        Args:
            min_pixels, max_pixels: bounds that images are resized to; by default the processor's own.
            settings: the keyword arguments of `InContextVLM`.
        """
        model, _ = load_vlm(name_or_path, device=device, dtype=dtype)
        processor = load_processor(name_or_path, min_pixels, max_pixels)
        try:
            return cls(model, processor, **settings)
        except PiecesError as error:
            if process_state().is_main_process:
                sys.stderr.write(f"note: {name_or_path} is asked with whole prompts, which is slower: {error}\n")
        common = ("prompt_style", "system_prompt", "max_batch_tokens")
        return PlainInContextVLM(
            model, processor, **{name: value for name, value in settings.items() if name in common}
        )

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
        text = text_to_score(request)
        key = ("answer", text)
        if key not in self._pieces:
            self._pieces[key] = (None, self._maker.answer(text))
        self._pieces.move_to_end(key)
        return self._pieces[key][1]

    def _prompt(self, request: InContextRequest) -> list[Piece]:
        examples = [self._piece(example, self._make_example) for example in request.examples]
        return [self._maker.start, *examples, self._piece(request.query, self._make_question)]

    # Probabilities

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

    def _generate(
        self, requests: Sequence[InContextRequest], max_new_tokens: int, num_beams: int, length_penalty: float
    ) -> list[str]:
        if num_beams > 1 and self._family.deepstack:  # transformers' search over embeddings would leave it out
            return super()._generate(requests, max_new_tokens, num_beams, length_penalty)
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
                    for batch in token_batches([(length, 0) for length in lengths], self.max_batch_tokens)
                )
            for batch, tokens in batches:
                texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                for row, text in zip(batch, texts, strict=True):
                    for number in numbers[row]:
                        results[number] = text
        return results

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
        return self.model.generate(
            inputs_embeds=self._embeddings(turned)[0],
            attention_mask=torch.tensor(mask, dtype=torch.long, device=device),
            position_ids=torch.tensor(np.concatenate([text_positions[None], turned.positions]), device=device),
            generation_config=self._settings(max_new_tokens, num_beams, length_penalty),
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
                for batch in token_batches(sizes, self.max_batch_tokens):
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
            for batch in token_batches(sizes, self.max_batch_tokens):
                chosen = [nodes[member] for member in batch]
                done = self._forward([own[member] for member in batch], chosen, kept, keep=new_tokens > 0)
                yield [wave.members[member] for member in batch], done

    def _embeddings(self, layout: Layout) -> tuple[torch.Tensor, dict[str, Any]]:
        """What the language model takes of tokens and images: embeddings, and what goes to later layers by name."""
        device = self._embed.weight.device
        embeds = self._embed(torch.tensor(layout.ids, device=device))
        if not layout.images:
            return embeds, {}
        places = torch.tensor(layout.ids == self._image_id, device=device)  # (B, L)
        features = self.images(layout.images).to(device, embeds.dtype)
        first, *later = features.split(embeds.shape[-1], dim=-1)
        embeds[places] = first
        return embeds, self._family.later_features(later, places)

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
        embeds, keywords = self._embeddings(layout)
        mask = np.arange(layout.ids.shape[1]) < layout.lengths[:, None]
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
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_key_value_heads * head
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
