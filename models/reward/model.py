"""A vision-language model that gives a response to a prompt with images one score.

Backbone, the hidden state of the last real token, a head of two layers, and a smooth map into the bounds. There is one
class a type of backbone, `<Name>ForRewardModel`, made from transformers' own when it is asked for:
`Qwen3VLForRewardModel` of `qwen3_vl`. On disk the backbone's weights have the names that the published models have, so
that a reward model can be started from any of them (`from_backbone`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING
from transformers.utils import ModelOutput

from data.io.images import ImageSource
from data.rows.responses import Response
from models.errors import ModelError
from models.families.vision_hooks import has_own_encoding, share_images
from models.generation import evaluating
from models.hub_revisions import hub_options
from models.reward.config import RewardSettings, class_stem, reward_config_class, type_of_stem
from models.reward.encoding import encode_groups
from models.reward.inputs import Prompt, ResponseGroup, image_names, read_requests
from models.shared_prefix.conversations import pack_conversations
from models.shared_prefix.layout import rows_with_equal_keys
from models.shared_prefix.sharing import SharedPrefix
from models.zero3 import loading_transposed

HEAD = "score_head"


def bound_scores(raw: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
    """Maps the real line smoothly and monotonically into the bounds: an arc tangent, of slope 1 at their middle.

    Its slope falls with the square of the distance, where that of tanh falls exponentially and is exactly 0 in float32
    from 10 half-widths on: a score at a bound can always be learned away from it.

    >>> bound_scores(torch.tensor([0.0, 2.0, 1e6]), -5.0, 5.0)
    tensor([0.0000, 1.7857, 5.0000])
    """
    if low is None or high is None:
        return raw
    middle, half = (low + high) / 2, (high - low) / 2
    return middle + half * (2 / math.pi) * torch.atan(raw * (math.pi / 2 / half))


def last_real_tokens(attention_mask: torch.Tensor) -> torch.Tensor:
    """(N, T) mask -> (N,) position of each row's last 1, whichever side is padded."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (places * (attention_mask != 0)).argmax(dim=1)


class ScoreHead(nn.Module):
    """Two layers from the hidden state of a token to its unbounded score."""

    def __init__(self, hidden_size: int, activation: str):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = ACT2FN[activation]
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, hidden) -> (N, 1)."""
        return self.out(self.activation(self.dense(hidden.to(self.dense.weight.dtype))))


@dataclass
class RewardOutput(ModelOutput):
    """What a reward model returns.

    Attributes:
        logits: (N, 1) scores in float32, named as TRL expects them.
        language_losses: (N,) cross-entropy a token of each row's labels, 0 for a row without; `None` without labels.
    """

    logits: torch.Tensor | None = None
    language_losses: torch.Tensor | None = None


class _RewardModel:
    """What all have in common; mixed into the family's `PreTrainedModel`."""

    _backbone_class: type
    _language_ties: ClassVar[dict[str, str]] = {}
    """Weights of the language-model head that are the embeddings', by the names of both."""
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]
    processor = None
    """Set by `load_reward_model`, or by hand; `score` needs it."""

    def __init__(self, config):
        super().__init__(config)
        self.sharing = SharedPrefix()
        text = config.get_text_config()
        self.model = self._backbone_class(config)
        self.score_head = ScoreHead(text.hidden_size, config.head_activation)
        if config.language_head:
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
            self._tied_weights_keys = self._language_ties
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.lm_head if self.config.language_head else None

    @classmethod
    def config_with(cls, stored: Any, settings: dict[str, Any] | None = None) -> Any:
        """The configuration of a reward model, from that of a backbone or another reward model.

        Args:
            settings: fields that differ from their defaults, or from those stored.
        """
        config = stored
        if stored.model_type == cls.config_class.backbone_type:
            config = cls.config_class(**{key: value for key, value in stored.to_dict().items() if key != "model_type"})
        for key, value in (settings or {}).items():
            setattr(config, key, value)
        config._check()
        return config

    @classmethod
    def from_backbone(cls, name: str | Path, settings: dict[str, Any] | None = None, **kwargs: Any):
        """A reward model with the weights of a published or warm-started model and a new head, or, if `name` is a
        reward model, with its head too.

        Args:
            settings: fields of the configuration that differ from their defaults, or from those stored with `name`.
            kwargs: of `from_pretrained`.

        Raises:
            ValueError: weights of the backbone are missing; lists them.
        """
        stored = AutoConfig.from_pretrained(name, **hub_options(kwargs))
        starts_new = stored.model_type == cls.config_class.backbone_type
        config = cls.config_with(stored, settings)
        quantization = kwargs.get("quantization_config")
        if quantization is not None:  # the head is trained in full
            quantization.llm_int8_skip_modules = [HEAD, "lm_head"]
        with loading_transposed():
            model, info = cls.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
        may_miss = (f"{HEAD}.",) if starts_new else ()
        missing = sorted(key for key in info["missing_keys"] if not key.startswith(may_miss))
        wrong = [f"missing: {missing}"] if missing else []
        wrong += [f"{kind}: {sorted(info[kind])}" for kind in ("unexpected_keys", "mismatched_keys") if info[kind]]
        if wrong:
            raise ModelError(f"{name}: weights do not fit a {cls.__name__}: {'; '.join(wrong)}")
        return model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        row_groups: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RewardOutput:
        """Scores of N conversations.

        Args:
            input_ids, attention_mask: (N, T).
            image_index: (places,), which image stands at each place of the conversations; by default each at one.
            labels: (N, T) of the language-model loss, -100 where there is none.
            row_groups: (N,), equal where conversations begin with the same prompt and images, which are then read once
                (models/shared_prefix/packing.py); by default each row is read by itself.
            kwargs: what else the backbone takes: types of tokens (N, T), and what its image processor makes of the
                different images.
        """
        kwargs.pop("use_cache", None)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "image_index": image_index, **kwargs}
        ends = last_real_tokens(attention_mask).unsqueeze(1)  # (N, 1)

        def plain(_: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            places = torch.arange(input_ids.numel(), device=input_ids.device).view(input_ids.shape)
            hidden = self._hidden(**inputs)  # (N * T, hidden)
            return self._scores(hidden[places.gather(1, ends).squeeze(1)]), hidden, places

        def packed(_: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
            batch = pack_conversations(self.model, inputs, row_groups.tolist(), self.sharing.allowed)
            if batch is None:
                return None
            places = batch.places(input_ids.device)
            hidden = self._hidden(**batch.inputs)  # (places, hidden)
            return self._scores(hidden[places.gather(1, ends).squeeze(1)]), hidden, places

        may_share = row_groups is not None and kwargs.get("position_ids") is None
        scores, hidden, places = self.sharing.run(self, packed, plain) if may_share else plain(self)
        return RewardOutput(scores, None if labels is None else self._language_losses(hidden, places, labels))

    def _scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, hidden) -> (N, 1)."""
        return bound_scores(self.score_head(hidden).float(), self.config.score_min, self.config.score_max)

    def _hidden(self, image_index: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """(lines * width, hidden) of what the backbone reads, line by line."""
        repeats = image_index is not None and image_index.tolist() != list(range(len(image_index)))
        if repeats or (image_index is not None and has_own_encoding(self.model)):
            share_images(self.model)
            inputs["image_index"] = image_index
        return self.model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)

    def _language_losses(self, hidden: torch.Tensor, places: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(N,): only the tokens that predict a label go through the language head.

        Args:
            places: (N, T), which of the hidden states is each token's.
        """
        if not self.config.language_head:
            raise ValueError("labels: this model has no language head (language_head: false)")
        following = labels[:, 1:]
        learned = following != -100  # (N, T - 1)
        logits = self.lm_head(hidden[places[:, :-1][learned]]).float()  # (tokens, vocabulary)
        cap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        if cap is not None:
            logits = cap * (logits / cap).tanh()
        each = F.cross_entropy(logits, following[learned], reduction="none")
        total = torch.zeros_like(following, dtype=each.dtype).masked_scatter(learned, each).sum(dim=1)
        return total / learned.sum(dim=1).clamp(min=1)

    @torch.inference_mode()
    def score(
        self,
        prompts: Sequence[Prompt],
        images: Sequence[Sequence[ImageSource] | ImageSource | None] | None,
        responses: Sequence[Response | Sequence[dict[str, Any]]],
        batch_size: int = 16,
    ) -> torch.Tensor:
        """Scores of responses, (N,) float32 on the CPU.

        Args:
            prompts: of each response, a question or chat messages.
            images: of each prompt, in order; `None` if no prompt has any.
            responses: texts, parts of texts and images, or chat messages that end with either
                (`models.reward.inputs.read_requests`).

        Raises:
            TypeError: something else; says what is expected.
            ValueError: no processor, or lists of different lengths.
        """
        if self.processor is None:
            raise ValueError("no processor: load the model by load_reward_model, or set model.processor")
        prompts, images, responses = read_requests(prompts, images, responses)
        names = image_names(images)
        order = sorted(  # rows of one prompt stand together, those of alike length beside each other
            range(len(prompts)),
            key=lambda row: (len(str(prompts[row])), str(prompts[row]), names[row], len(responses[row])),
        )
        scores = torch.empty(len(prompts))
        with evaluating(self):
            for start in range(0, len(order), batch_size):
                shared = _rows_by_prompt(order[start : start + batch_size], prompts, names)
                groups = [
                    ResponseGroup(prompts[rows[0]], images[rows[0]], [responses[row] for row in rows])
                    for rows in shared
                ]
                inputs = encode_groups(self.processor, groups, self.config.system_prompt)
                inputs = {key: value.to(self.device) for key, value in inputs.items()}
                scores[[row for rows in shared for row in rows]] = self(**inputs).logits.squeeze(1).cpu()
        return scores


def _rows_by_prompt(rows: Sequence[int], prompts: Sequence[Prompt], names: Sequence[Sequence[str]]) -> list[list[int]]:
    """Rows that share prompt and images together, so that both are read once."""
    groups = rows_with_equal_keys([(repr(prompts[row]), *names[row]) for row in rows])
    return [[rows[place] for place in group] for group in groups]


# -- a class a type of backbone ---------------------------------------------------------------------------------------

_ENDING = "ForRewardModel"


def reward_model_class(backbone: str) -> type:
    """The class of reward models on backbones of a type, known to `AutoModel` and
    `AutoModelForSequenceClassification` from now on.

    Args:
        backbone: a type of which `models.reward.config.can_be_backbone` is true.
    """
    name = f"{class_stem(backbone)}{_ENDING}"
    if name not in globals():  # where pickle looks for it
        globals()[name] = _make_class(name, backbone)
    return globals()[name]


def _make_class(name: str, backbone: str) -> type:
    config, of_backbone = reward_config_class(backbone), CONFIG_MAPPING[backbone]
    model, with_language_head = MODEL_MAPPING[of_backbone], MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[of_backbone]
    common = next(one for one in model.__mro__[1:] if issubclass(one, PreTrainedModel))
    values = {
        "__doc__": f"{model.__name__} with a score head.",
        "__module__": __name__,
        "__annotations__": {"config": config},
        "config_class": config,
        "_backbone_class": model,
        "_language_ties": dict(with_language_head._tied_weights_keys or {}),
    }
    made = type(name, (_RewardModel, common), values)
    AutoModel.register(config, made)
    AutoModelForSequenceClassification.register(config, made)
    # On disk the backbone has the names that it has in the published models' class.
    names = with_language_head.__name__, backbone
    mapping = next((found for one in names if (found := get_checkpoint_conversion_mapping(one)) is not None), None)
    if mapping is not None:
        register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
    return made


def __getattr__(name: str) -> Any:
    backbone = type_of_stem(name.removesuffix(_ENDING)) if name.endswith(_ENDING) else None
    if backbone is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return reward_model_class(backbone)


RewardSettings.make_model_class = staticmethod(reward_model_class)
