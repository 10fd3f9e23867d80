"""The next tokens of rows, and how likely they were before anything was cut off."""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper
from transformers.generation import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from models.decoding.choice import ByCuts, ByProcessors
from models.decoding.sampling import Cuts
from models.decoding.streams import AsTransformers, Likeliest

LOGITS = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.5, 1.0, 0.0, 5.0]])


class Second:
    """Picks the second likeliest."""

    def pick(self, scores, rows, steps, ids):
        places = scores.topk(2, dim=1).indices[:, 1]
        return places if ids is None else ids.gather(1, places.unsqueeze(1)).squeeze(1)


def likely(row: int, token: int, temperature: float = 1.0) -> float:
    return (LOGITS[row] / temperature).log_softmax(dim=0)[token].item()


def assert_likely(found: list[float], *expected: float) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_tokens_are_as_likely_as_at_their_temperature_without_cuts():
    chosen = ByCuts(Cuts(temperature=0.5, top_k=2), Second()).choose(LOGITS, [0, 1], [0, 0])
    assert chosen.tokens == [2, 1]
    assert_likely(chosen.log_probs, likely(0, 2, 0.5), likely(1, 1, 0.5))


def test_suppressed_tokens_do_not_come():
    chosen = ByCuts(Cuts(suppressed=(1, 3)), Likeliest()).choose(LOGITS, [0, 1], [0, 0])
    assert chosen.tokens == [2, 0]
    assert_likely(chosen.log_probs, *(likely(row, token) for row, token in enumerate(chosen.tokens)))


class Shown(LogitsProcessor):
    """Notes what it is shown, and forbids each row its first token."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append((input_ids.tolist(), scores.clone()))
        return scores.scatter(1, input_ids[:, :1], -torch.inf)


def test_processors_see_all_rows_in_the_order_of_the_batch():
    shown = Shown()
    processors = LogitsProcessorList([shown, TemperatureLogitsWarper(2.0)])
    choice = ByProcessors(processors, Likeliest(), 2.0, torch.tensor([[3, 0], [1, 0], [2, 0]]), pad=9)
    chosen = choice.choose(LOGITS, [2, 0], [0, 0])  # in places of the rows that are left
    assert chosen.tokens == [1, 1]
    assert_likely(chosen.log_probs, likely(0, 1, 2.0), likely(1, 1, 2.0))
    ids, scores = shown.seen[0]
    assert ids == [[3, 0], [1, 0], [2, 0]]
    assert torch.equal(scores, torch.stack([LOGITS[1], torch.zeros(4), LOGITS[0]]))
    choice.note([2, 0], [1, 1])
    assert choice.ids.tolist() == [[3, 0, 1], [1, 0, 9], [2, 0, 1]]


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.7}, {"top_k": 5}, {"top_k": 9, "top_p": 0.8, "min_p": 0.05}])
def test_what_tokens_are_drawn_from_is_what_processors_leave(cuts):
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 3
    makers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    given = [makers[name](value) for name, value in cuts.items()]
    processors = LogitsProcessorList([TemperatureLogitsWarper(0.7), *given])
    rows = list(range(40))
    torch.manual_seed(0)
    choice = ByCuts(Cuts.of(processors), AsTransformers(40, 30, logits.device), notes_drawn=True)
    chosen = choice.choose(logits, rows, [0] * 40)
    expected = processors(None, logits).log_softmax(dim=1).gather(1, torch.tensor(chosen.tokens)[:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(chosen.drawn), expected)
    parts = max(abs(one - other) for one, other in zip(chosen.drawn, chosen.log_probs, strict=True))
    assert parts > 0.01 if cuts else parts < 1e-6
