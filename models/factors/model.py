"""Factor predictors, and their configurations: an image backbone or a vision tower, with an MLP head on it.

Both kinds have one interface: their configuration prepares pictures (`prepare`), and the model gives a logit a factor.
The thresholds above which a factor applies are fitted on validation data and stored with the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)
from transformers.utils import ModelOutput

from data.io.images import ImageSource, open_image
from models.errors import ModelError
from models.factors.inputs import IMAGENET_MEAN, IMAGENET_STD, on_canvas
from models.vision_towers import Picture, build_vision, features_of, read_pictures

BATCH = 32
DEFAULT_THRESHOLD = 0.5


class FactorConfig(PreTrainedConfig):
    """What the configurations of both kinds have in common.

    Attributes:
        factors: ids, in the order of the logits.
        factor_names: id -> readable name.
        vision: configuration of what looks at the pictures.
        feature_size: width of what it says about a picture.
        head_size: width of the head's hidden layer.
        dropout: in the head, in training.
        pos_weight: weight of the positive examples of each factor in the loss; `None` for 1.
        thresholds: of each factor's probability; `None` before they are fitted.
    """

    factors: list | None = None
    factor_names: dict | None = None
    vision: dict | None = None
    feature_size: int = 0
    head_size: int = 256
    dropout: float = 0.1
    pos_weight: list | None = None
    thresholds: list | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.factors = list(self.factors or [])
        for name in ("pos_weight", "thresholds"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.factors):
                raise ModelError(f"{name}: expected {len(self.factors)} numbers, one a factor, found {len(values)}")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout: expected at least 0 and less than 1, found {self.dropout}")
        if self.head_size < 1:
            raise ModelError(f"head_size: expected at least 1, found {self.head_size}")

    def threshold_array(self) -> np.ndarray:
        """(factors,): the thresholds, or the default ones."""
        if self.thresholds is None:
            return np.full(len(self.factors), DEFAULT_THRESHOLD)
        return np.asarray(self.thresholds, dtype=np.float64)


class ImageFactorConfig(FactorConfig):
    """Of a predictor on an image backbone of transformers, or of timm through transformers.

    Attributes:
        image_size: side of the canvas that pictures are laid on, in pixels.
        enlarge: whole factor by which pictures are enlarged first, as far as the canvas allows.
        image_mean, image_std: of each channel, for pixels from 0 to 1.
    """

    model_type = "image_factor_predictor"

    image_size: int = 224
    enlarge: int = 1
    image_mean: list | tuple = IMAGENET_MEAN
    image_std: list | tuple = IMAGENET_STD

    def prepare(self, images: Sequence[Any]) -> dict[str, torch.Tensor]:
        """What the model reads of RGB pictures."""
        return {"pixel_values": on_canvas(images, self.image_size, self.image_mean, self.image_std, self.enlarge)}


class TowerFactorConfig(FactorConfig):
    """Of a predictor on the vision tower of a vision-language model.

    Attributes:
        vision: configuration of the whole model, of which the language model is left out.
        image_processor: settings of its image processor, with its class (`image_processor_type`).
    """

    model_type = "tower_factor_predictor"

    image_processor: dict | None = None

    def vision_model(self) -> PreTrainedConfig:
        """The configuration of the whole model."""
        return AutoConfig.for_model(**self.vision)

    def prepare(self, images: Sequence[Any]) -> dict[str, Any]:
        """What the model reads of RGB pictures: `pictures`, and of each its height and width (`sizes`), which features
        do not tell: in patches, where the image processor says so, or else in pixels."""
        if "_processor" not in self.__dict__:
            self.__dict__["_processor"] = _image_processor(self.image_processor), self.vision_model()
        processor, config = self.__dict__["_processor"]
        pictures = read_pictures(config, processor, images)
        grids = [picture.get("image_grid_thw") for picture in pictures]
        sizes = [
            (image.height, image.width) if grid is None else tuple(grid[0, 1:].tolist())
            for image, grid in zip(images, grids, strict=True)
        ]
        return {"sizes": torch.tensor(sizes, dtype=torch.long).view(-1, 2), "pictures": pictures}

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != "_processor"}


class FirstTowerFactorConfig(TowerFactorConfig):
    """Of predictors that were stored with a tower alone: its configuration, and an image processor without its class.

    Attributes:
        backbone_type: of the whole model.
    """

    model_type = "qwen_factor_predictor"

    backbone_type: str | None = None

    def __post_init__(self, **kwargs):
        if self.backbone_type is not None and "vision_config" not in (self.vision or {}):
            self.vision = {"model_type": self.backbone_type, "vision_config": self.vision}
            kind = IMAGE_PROCESSOR_MAPPING_NAMES[self.backbone_type]["torchvision"]
            self.image_processor = {"image_processor_type": kind, **(self.image_processor or {})}
        super().__post_init__(**kwargs)


def _image_processor(settings: dict[str, Any]) -> Any:
    """The image processor of settings that were stored with its class.

    Raises:
        ModelError: no such class.
    """
    values = dict(settings)
    name = values.pop("image_processor_type", None)
    found = None if name is None else get_image_processor_class_from_name(name)
    if found is None:
        raise ModelError(f"image_processor_type: expected an image processor of transformers, found {name!r}")
    return found(**values)


@dataclass
class FactorOutput(ModelOutput):
    """Loss (with labels) and logits (B, factors)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class FactorPredictor(PreTrainedModel, ABC):
    """A backbone, and an MLP that turns its features into a logit a factor. Subclasses define `features`."""

    config_class = FactorConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: FactorConfig):
        super().__init__(config)
        self.backbone = self.build_backbone(config)
        self.head = nn.Sequential(
            nn.LayerNorm(config.feature_size),
            nn.Linear(config.feature_size, config.head_size),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.head_size, len(config.factors)),
        )
        self.post_init()

    @staticmethod
    @abstractmethod
    def build_backbone(config: FactorConfig) -> nn.Module:
        """A new backbone of the configuration."""

    @abstractmethod
    def features(self, **inputs: Any) -> torch.Tensor:
        """(B, feature_size)."""

    def forward(self, labels: torch.Tensor | None = None, **inputs: Any) -> FactorOutput:
        """Logits, and with labels (B, factors) of 0 and 1 the mean binary cross-entropy."""
        logits = self.head(self.features(**inputs))
        if labels is None:
            return FactorOutput(logits=logits)
        weight = None if self.config.pos_weight is None else logits.new_tensor(self.config.pos_weight)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), pos_weight=weight)
        return FactorOutput(loss=loss, logits=logits)

    @torch.inference_mode()
    def probabilities(self, images: Sequence[ImageSource], batch_size: int = BATCH) -> np.ndarray:
        """float32 (N, factors), in the order of `config.factors`.

        Raises:
            ImageError: an image that cannot be opened.
        """
        training = self.training
        self.eval()
        found = [np.zeros((0, len(self.config.factors)), dtype=np.float32)]
        for start in range(0, len(images), batch_size):
            inputs = self.config.prepare([open_image(image) for image in images[start : start + batch_size]])
            logits = self(**send_to_device(inputs, self.device)).logits
            found.append(logits.float().sigmoid().cpu().numpy())
        self.train(training)
        return np.concatenate(found)

    def choose(self, probabilities: np.ndarray) -> list[list[str]]:
        """Ids of the factors whose probability reaches their threshold, of each image."""
        applies = probabilities >= self.config.threshold_array()
        return [[self.config.factors[number] for number in np.flatnonzero(row)] for row in applies]

    def predict(self, images: Sequence[ImageSource], batch_size: int = BATCH) -> list[list[str]]:
        """Ids of the factors that apply to each image; `probabilities` has how sure that is."""
        return self.choose(self.probabilities(images, batch_size))

    def freeze_backbone(self, trained_blocks: int) -> None:
        """Trains the head and the last blocks of the backbone alone; 0 leaves the whole backbone as it is.

        Raises:
            ValueError: more blocks than the backbone has.
        """
        blocks = blocks_of(self.backbone)
        if not 0 <= trained_blocks <= len(blocks):
            raise ModelError(f"trained_blocks: expected 0 to {len(blocks)}, found {trained_blocks}")
        self.backbone.requires_grad_(False)
        for block in blocks[len(blocks) - trained_blocks :]:
            block.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FactorPredictor":
        """As usual; batch norms that are frozen keep the statistics that they have."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self


class ImageFactorPredictor(FactorPredictor):
    """On an image backbone: its pooled features, or the mean of its last hidden states."""

    config_class = ImageFactorConfig

    @staticmethod
    def build_backbone(config: ImageFactorConfig) -> nn.Module:
        return AutoModel.from_config(vision_config(config))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pooled(self.backbone(pixel_values.to(self.dtype)))


class TowerFactorPredictor(FactorPredictor):
    """On a vision tower: mean and maximum of the features of a picture that a language model would see, and the
    logarithms of its height and width, which features do not tell."""

    config_class = TowerFactorConfig
    main_input_name = "sizes"

    @staticmethod
    def build_backbone(config: TowerFactorConfig) -> nn.Module:
        """Without weights: they are loaded from a folder."""
        return build_vision(config.vision_model())

    def features(self, sizes: torch.Tensor, pictures: Sequence[Picture]) -> torch.Tensor:
        found = [one.flatten(1) for one in features_of(self.backbone, pictures)]  # of each (tokens, layers * width)
        means = torch.stack([one.mean(dim=0) for one in found])
        maxima = torch.stack([one.amax(dim=0) for one in found])
        return torch.cat([means, maxima, sizes.to(means.dtype).log()], dim=1)


class FirstTowerFactorPredictor(TowerFactorPredictor):
    config_class = FirstTowerFactorConfig


def pooled(output: Any) -> torch.Tensor:
    """(B, width) of the output of an image backbone."""
    if getattr(output, "pooler_output", None) is not None:
        return output.pooler_output.flatten(1)
    hidden = output.last_hidden_state
    return hidden.mean(dim=(2, 3)) if hidden.dim() == 4 else hidden.mean(dim=1)


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The stages or layers of a backbone, first to last: its first list of modules."""
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList):
            return list(module)
    raise ModelError(f"{type(backbone).__name__} has no list of stages or layers; it can only be frozen as a whole")


def vision_config(config: FactorConfig) -> PreTrainedConfig:
    """The configuration of the backbone.

    Raises:
        ValueError: it names no model type, or an unknown one.
    """
    values = dict(config.vision or {})
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ModelError(
            "the backbone's configuration names no 'model_type' (resnet, vit, convnext, timm_wrapper ...)"
        )
    return AutoConfig.for_model(model_type, **values)


for _config, _model in (
    (ImageFactorConfig, ImageFactorPredictor),
    (TowerFactorConfig, TowerFactorPredictor),
    (FirstTowerFactorConfig, FirstTowerFactorPredictor),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
