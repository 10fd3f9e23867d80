"""Prompts that show examples, put together from pieces that were tokenised once.

A chat template writes an example the same way wherever it stands, and every piece below begins with a special token,
at which tokenisers start afresh. So the tokens of a prompt are the tokens of its pieces, one after the other:

    start, an example, ..., an example, the question

M-RoPE positions are counted from a piece's own start; the next piece starts `advance` later.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from data.prompts import in_context_messages
from models.families.base import PromptPieces
from models.families.loading import render
from models.families.registry import family_of

_MARKS = tuple(chr(0xE000 + number) for number in range(5))  # private-use characters: no text has them


class PiecesError(ValueError):
    """Prompts of a model cannot be put together from pieces; those that are written whole can be asked."""


def pieces_of(combined: nn.Module) -> PromptPieces:
    """How the family of a model puts prompts together.

    Args:
        combined: the module that takes pixels and tokens.

    Raises:
        PiecesError: it does not, or not those of this model.
    """
    family = family_of(combined.config)
    if not isinstance(family, PromptPieces):
        kind = combined.config.model_type
        raise PiecesError(f"models of type {kind!r} are not among those whose prompts are put together")
    reason = family.reason_no_pieces(combined)
    if reason is not None:
        raise PiecesError(reason)
    return family


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens that stand together.

    Args:
        key: of its content.
        ids: token ids with images expanded, (n,).
        positions: time, height and width relative to the piece's start, (3, n).
        advance: where the next piece starts.
        images: keys of its images, in order.
    """

    key: bytes
    ids: np.ndarray
    positions: np.ndarray
    advance: int
    images: tuple[str, ...] = ()


class PieceMaker:
    """Makes pieces the way a processor's chat template and tokenizer would write them.

    Args:
        processor: of the model.
        image_block: `PromptPieces.image_block`.
        style, system: see `data.prompts.in_context_messages`.

    Raises:
        PiecesError: a chat template that writes an example differently depending on how many there are.
    """

    def __init__(self, processor, image_block: tuple[str, str, str], style: str, system: str | None):
        self._processor = processor
        self.tokenizer = processor.tokenizer
        self._image_token, self._block = image_block[1], "".join(image_block)
        self._image_id = self.tokenizer.convert_tokens_to_ids(self._image_token)
        start, self._before, self._middle, self._between, self._end = self._read_template(style, system)
        self.start = self._piece(start, (), ())

    def _read_template(self, style: str, system: str | None) -> tuple[str, str, str, str, str]:
        """Texts: start, [images] before the question, between question and answer, between examples, end."""
        question, *others = _MARKS
        shown = [(others[0], others[1]), (others[2], others[3])]
        rendered = self._render(in_context_messages(question, shown, style, system))
        parts, rest = [], rendered
        for mark in (*others, question):
            part, _, rest = rest.partition(mark)
            parts.append(part)
        first, middle, second, middle_again, third = parts
        start, _, before = first.partition(self._block)
        between, _, before_again = second.partition(self._block)
        without = self._render(in_context_messages(question, (), style, system))
        if (
            (middle_again, third, before_again) != (middle, second, before)
            or without != f"{start}{self._block}{before}{question}{rest}"
            or self._block not in first
        ):
            raise PiecesError(
                "the processor's chat template does not write each image as one block and each example alike; two "
                f"examples and a question became {rendered!r}"
            )
        return start, before, middle, between, rest

    def _render(self, messages: list[dict]) -> str:
        return render(self._processor, messages, add_generation_prompt=True)

    def example(self, question: str, answer: str, images: Sequence[str], grids: Sequence[tuple[int, int]]) -> Piece:
        """A shown example.

        Args:
            images: keys of its images.
            grids: rows and columns of the visual tokens of each.
        """
        text = f"{self._block * len(images)}{self._before}{question}{self._middle}{answer}{self._between}"
        return self._piece(text, images, grids)

    def question(self, question: str, images: Sequence[str], grids: Sequence[tuple[int, int]]) -> Piece:
        """What the model answers, up to where its answer starts."""
        text = f"{self._block * len(images)}{self._before}{question}{self._end}"
        return self._piece(text, images, grids)

    def answer(self, text: str) -> Piece:
        """Exactly the tokens of an answer: no token of the template, no end."""
        return self._piece(text, (), ())

    def _piece(self, text: str, images: Sequence[str], grids: Sequence[tuple[int, int]]) -> Piece:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = [place for place, token in enumerate(ids) if token == self._image_id]
        if len(places) != len(images):
            raise ValueError(
                f"image tokens: expected {len(images)}, one an image, found {len(places)} in {text!r:.200}; "
                f"a question or an answer must not hold {self._image_token}"
            )
        token_parts, position_parts, done, position = [], [], 0, 0
        for place, (rows, columns) in zip(places, grids, strict=True):
            token_parts += [ids[done:place], [self._image_id] * (rows * columns)]
            position_parts.append(_text_positions(position, place - done))
            position += place - done
            position_parts.append(_image_positions(position, rows, columns))
            position += max(rows, columns)
            done = place + 1
        token_parts.append(ids[done:])
        position_parts.append(_text_positions(position, len(ids) - done))
        digest = hashlib.blake2b("\0".join((text, *images)).encode("utf-8", "surrogatepass"), digest_size=16)
        return Piece(
            digest.digest(),
            np.concatenate([np.asarray(part, dtype=np.int32) for part in token_parts]),
            np.concatenate(position_parts, axis=1),
            position + len(ids) - done,
            tuple(images),
        )


def _text_positions(start: int, length: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int32), (3, length))


def _image_positions(start: int, rows: int, columns: int) -> np.ndarray:
    """One moment in time; height and width count the visual tokens, row by row."""
    height, width = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    return np.stack([np.zeros_like(height), height, width]) + np.int32(start)


@dataclass(frozen=True)
class Layout:
    """Rows of pieces as right-padded arrays.

    Args:
        ids: (B, L).
        positions: (3, B, L).
        lengths: tokens of each row, (B,).
        ends: position after each row's last token, (B,).
        images: keys of all images, row by row.
    """

    ids: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray
    images: list[str]


def lay_out(rows: Sequence[Sequence[Piece]], pad_id: int, starts: Sequence[int] | None = None) -> Layout:
    """Puts rows of pieces one below the other.

    Args:
        starts: position of each row's first token; by default 0.
    """
    pieces = [piece for row in rows for piece in row]
    row_of_piece = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    sizes = np.array([len(piece.ids) for piece in pieces])
    advances = np.array([piece.advance for piece in pieces])
    lengths = np.bincount(row_of_piece, weights=sizes, minlength=len(rows)).astype(np.int64)
    ends = np.bincount(row_of_piece, weights=advances, minlength=len(rows)).astype(np.int64)
    starts = np.zeros(len(rows), dtype=np.int64) if starts is None else np.asarray(starts)
    offsets = np.cumsum(advances) - advances - (np.cumsum(ends) - ends - starts)[row_of_piece]

    row_of_token = np.repeat(np.arange(len(rows)), lengths)
    column = np.arange(len(row_of_token)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids = np.full((len(rows), lengths.max()), pad_id, dtype=np.int64)
    ids[row_of_token, column] = np.concatenate([piece.ids for piece in pieces])
    positions = np.zeros((3, *ids.shape), dtype=np.int64)
    relative = np.concatenate([piece.positions for piece in pieces], axis=1)
    positions[:, row_of_token, column] = relative + np.repeat(offsets, sizes)
    return Layout(ids, positions, lengths, starts + ends, [key for piece in pieces for key in piece.images])
