"""Puts the rollout loop in the place of the one of transformers' `generate`, which prepares everything as ever."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.stopping_criteria import EosTokenCriteria

from data.errors import UserError
from models.decoding.choice import ByCuts, ByProcessors
from models.decoding.drafts.drafting import Drafting
from models.decoding.rollout import Completions, Ends, RollOut
from models.decoding.sampled_log_probs import SampledLogProbs
from models.decoding.sampling import Cuts
from models.decoding.streams import AsTransformers, Draws, Likeliest, OwnNumbers


@dataclass
class Decoding:
    """What `generate` takes as `custom_generate`: the loop, with these settings.

    Attributes:
        stream: of random numbers, one of `models.decoding.streams.STREAMS`.
        drafting: `None` drafts nothing.
        slots: rows that are computed at once; others take the places of those that end. `None`: all.
        graphs: record forwards as CUDA graphs.
        notes_drawn: note the log-probabilities of what tokens are drawn from, after all cuts.
        last: completions of the last batch.
    """

    stream: str = "transformers"
    drafting: Drafting | None = None
    slots: int | None = None
    graphs: bool = False
    notes_drawn: bool = False
    last: Completions | None = None

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **inputs: Any,
    ) -> torch.Tensor:
        """(B, P + C), prompts and completions, which padding follows."""
        noting = [one for one in logits_processor if isinstance(one, SampledLogProbs)]
        logits_processor = LogitsProcessorList(one for one in logits_processor if one not in noting)
        pad = _pad_token(generation_config)
        ends = _ends(stopping_criteria, input_ids.shape[1])
        draws = self._draws(generation_config, len(input_ids), ends.most, input_ids.device, model)
        cuts = Cuts.of(logits_processor)
        choice: ByCuts | ByProcessors
        if cuts is None or ends.criteria is not None:
            temperature = generation_config.temperature if generation_config.do_sample else None
            self._check_slots([*logits_processor, *(ends.criteria or [])])
            choice = ByProcessors(logits_processor, draws, temperature or 1.0, input_ids, pad, self.notes_drawn)
        else:
            choice = ByCuts(cuts, draws, self.notes_drawn)
        given = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs)
        drafting = self.drafting if isinstance(choice, ByCuts) else None
        self.last = RollOut(model, given, choice, ends, drafting, self.slots, self.graphs).run()
        for one in noting:
            one.tell(self.last.log_probs)
        width = max(map(len, self.last.ids))
        rows = [ids + [pad] * (width - len(ids)) for ids in self.last.ids]
        return torch.cat([input_ids, torch.tensor(rows, device=input_ids.device)], dim=1)

    def _check_slots(self, found: Sequence[Any]) -> None:
        """Rows that take the places of others are not at the same step, as processors expect it of a batch."""
        if self.slots is not None:
            names = ", ".join(type(one).__name__ for one in found)
            raise UserError(
                f"rollout_slots: {self.slots}: rows at different steps can be sampled by temperature, top_k, top_p, "
                f"min_p and suppress_tokens, and ended by tokens and length alone, found {names}"
            )

    def _draws(
        self, config: GenerationConfig, batch: int, most: int, device: torch.device, model: PreTrainedModel
    ) -> Draws:
        if not config.do_sample:
            return Likeliest()
        if self.stream == "own":
            return OwnNumbers(batch, most, device)
        return AsTransformers(batch, model.get_output_embeddings().weight.shape[0], device)


def _ends(criteria: StoppingCriteriaList, prompt: int) -> Ends:
    tokens: set[int] = set()
    most, others = None, StoppingCriteriaList()
    for one in criteria:
        if type(one) is EosTokenCriteria:
            tokens |= set(one.eos_token_id.tolist())
        elif type(one) is MaxLengthCriteria:
            most = one.max_length - prompt
        else:
            others.append(one)
    together = bool(others) and not any(hasattr(one, "eos_token_id") for one in criteria)
    return Ends(frozenset(tokens), most, others or None, together)


def _pad_token(config: GenerationConfig) -> int:
    ends = config.eos_token_id
    if config.pad_token_id is not None:
        return config.pad_token_id
    return ends[0] if isinstance(ends, list) else (ends or 0)
