"""The check that the loop rolls out what transformers does.

transformers' own loop is led along the completions: whatever it would draw, the next token is theirs. So both ways
compute each token behind the same ones, also where rounding or another stream of random numbers would part them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from models.decoding.custom_generate import Decoding
from models.decoding.rollout import Completions
from models.decoding.sampled_log_probs import SampledLogProbs
from models.decoding.sampling import Cuts
from models.decoding.streams import generator_state, set_generator_state
from models.shared_prefix.sharing import noted_dtypes


@dataclass(frozen=True)
class Place:
    """A token of a completion, and what transformers finds there.

    Attributes:
        token: the completion's; drawn: what transformers would have drawn.
        log_probs: by transformers, of `token` and `drawn`, before anything is cut off, in nats.
        difference: of those of `token` by both ways.
        apart: how far `drawn` is before `token`, by log-probability and random numbers, in nats.
    """

    row: int
    place: int
    token: int
    drawn: int
    log_probs: tuple[float, float]
    difference: float
    apart: float


@dataclass
class Led:
    """What `generate` takes as `custom_generate`: its own loop, led along completions.

    Attributes:
        places: of all tokens, step by step.
        cuts: whether something other than temperature and suppressed tokens changes what is drawn from.
    """

    completions: Completions
    places: list[Place] = field(default_factory=list)
    cuts: bool = False

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        **others: Any,
    ) -> torch.Tensor:
        """(B, P + C), prompts and completions, which padding follows where transformers ends a row."""
        processors = LogitsProcessorList(one for one in logits_processor if not isinstance(one, SampledLogProbs))
        cuts = Cuts.of(processors)
        self.cuts = cuts is None or cuts.cuts
        samples, prompt = generation_config.do_sample, input_ids.shape[1]
        temperature = generation_config.temperature if samples else None

        def lead(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            scores = processors(ids, logits)
            drawn, ranks = _next_draws(scores) if samples else (scores.argmax(dim=1), scores)
            place = ids.shape[1] - prompt
            self._note(place, logits / (temperature or 1.0), drawn, ranks)
            return self._led(place, scores)

        return model._sample(input_ids, lead, generation_config=generation_config, **others)

    def _tokens(self, place: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that have a token at this place, and these tokens."""
        found = [(row, ids[place]) for row, ids in enumerate(self.completions.ids) if place < len(ids)]
        return torch.tensor(found, dtype=torch.long, device=device).view(-1, 2).unbind(dim=1)

    def _led(self, place: int, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, V) that let no tokens come but those of the completions; of rows that have ended, as they are."""
        rows, tokens = self._tokens(place, scores.device)
        led = scores.index_fill(0, rows, -torch.inf)
        led[rows, tokens] = 0.0
        return led

    def _note(self, place: int, logits: torch.Tensor, drawn: torch.Tensor, ranks: torch.Tensor) -> None:
        """What is found at this place.

        Args:
            drawn: (B,); ranks: (B, V), highest for what is drawn.
        """
        rows, tokens = self._tokens(place, logits.device)
        both = torch.stack([tokens, drawn[rows]], dim=1)  # (rows, 2)
        log_probs = logits[rows].log_softmax(dim=1).gather(1, both).tolist()
        found = ranks[rows].gather(1, both)
        apart = (found[:, 1] - found[:, 0]).tolist()
        for row, pair, shown, far in zip(rows.tolist(), both.tolist(), log_probs, apart, strict=True):
            difference = abs(self.completions.log_probs[row][place] - shown[0])
            self.places.append(Place(row, place, *pair, tuple(shown), difference, far))


def _next_draws(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `torch.multinomial` will draw next from scores (B, V), (B,), and by what it does so, (B, V)."""
    state = generator_state(scores.device)
    drawn = torch.multinomial(scores.softmax(dim=1), 1).squeeze(1)
    set_generator_state(state, scores.device)
    ranks = scores.log_softmax(dim=1) - torch.empty_like(scores).exponential_(1).log()
    set_generator_state(state, scores.device)
    return drawn, ranks


def rolled_out_both_ways(
    model: nn.Module, decoding: Decoding, roll_out: Callable[[], torch.Tensor], generate: Callable[..., torch.Tensor]
) -> tuple[torch.Tensor, str | None]:
    """What the loop rolls out, and how it differs from what transformers does, if by more than rounding.

    The generator stands afterwards where the loop leaves it.

    Args:
        roll_out: by `decoding`; generate: `model.generate` with its arguments, but for `custom_generate`.
    """
    device = next(model.parameters()).device
    before = generator_state(device)
    found = roll_out()
    after = generator_state(device)
    set_generator_state(before, device)
    led = Led(decoding.last)
    with noted_dtypes(model) as dtypes:
        again = generate(custom_generate=led)
    same_state = torch.equal(generator_state(device), after)
    set_generator_state(after, device)
    reason = _other_ends(found, again) or _other_log_probs(led.places, dtypes[-1])
    if reason is None and decoding.stream == "transformers":
        if dtypes[-1] == torch.float32 or not led.cuts:  # in 16 bits, the border of a cut is not sharp
            reason = _other_tokens(led.places, dtypes[-1])
        if reason is None and not same_state:
            reason = "the random-number generator is left in another state than by transformers"
    return found, reason


def _other_ends(found: torch.Tensor, again: torch.Tensor) -> str | None:
    """How completions end elsewhere: both are (B, tokens), led along the same ones."""
    if found.shape[1] != again.shape[1]:
        return f"rows have {found.shape[1]} tokens with their prompts, and by transformers {again.shape[1]}"
    rows = (found != again).any(dim=1).nonzero().flatten().tolist()
    if not rows:
        return None
    return f"{len(rows)} of {len(found)} completions end elsewhere than by transformers, the first is number {rows[0]}"


def _other_log_probs(places: Sequence[Place], dtype: torch.dtype) -> str | None:
    allowed = 1e-4 if dtype == torch.float32 else 0.1
    found = _typical([one.difference for one in places], dtype)
    if found <= allowed:
        return None
    worst = max(places, key=lambda one: one.difference)
    return (
        f"log-probabilities of tokens differ from those of transformers by {found:.3g} (at most {allowed} is rounding "
        f"in {dtype}), most at {_named(worst)}, by {worst.difference:.3g} from {worst.log_probs[0]:.3g}"
    )


def _other_tokens(places: Sequence[Place], dtype: torch.dtype) -> str | None:
    """Of places where transformers draws another token by the same random numbers. Were the numbers others, tokens
    would be as far apart on average as the distributions have entropy."""
    allowed = 2e-4 if dtype == torch.float32 else 0.05
    apart = [0.0 if one.token == one.drawn else abs(one.apart) for one in places]
    found = _typical(apart, dtype)
    if found <= allowed:
        return None
    wrong = [one for one, far in zip(places, apart, strict=True) if not far <= allowed]
    first = min(wrong, key=lambda one: (one.row, one.place))
    return (
        f"{len({one.row for one in wrong})} completions have other tokens than those of transformers, which with the "
        f"random numbers are {found:.3g} apart (at most {allowed} is rounding in {dtype}); the first is "
        f"{_named(first)}, where transformers draws {first.drawn}: log-probabilities of {first.log_probs[0]:.3g} and "
        f"{first.log_probs[1]:.3g}, {first.apart:.3g} apart"
    )


def _named(one: Place) -> str:
    return f"token {one.token} at place {one.place} of completion {one.row}"


def _typical(values: Sequence[float], dtype: torch.dtype) -> float:
    """The largest in float32, the mean in 16 bits."""
    found = torch.tensor(values)
    return (found.max() if dtype == torch.float32 else found.mean()).item()
