"""The score that a trained reward model gives to prompt, images and completion (`models/reward/model.py`)."""

import json
import math
import re
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from models.reward.names import backbone_type
from models.run_folders import MODEL_FILE, find_model
from models.zero3 import whole_models
from rewards.base import Completion, Reward, completion_text
from rewards.scoring import columns as column_types
from rewards.scoring.asked import prompts_and_images
from rewards.scoring.columns import QUESTIONS

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SPECIAL_TOKEN = re.compile(r"<\|[^<|>]*\|>")


def stored_bounds(model: str) -> tuple[float, float]:
    """Smallest and largest score of a reward model, from its folder; infinite for a name that may be the Hub's.

    Raises:
        ValueError: no such folder, or one that holds no reward model.
    """
    folder = Path(model)
    if not folder.is_dir():
        if _HUB_NAME.fullmatch(model) and not folder.parent.is_dir():
            return -math.inf, math.inf
        raise ValueError(f"model: '{model}': no such folder")
    try:
        path = Path(find_model(model)) / MODEL_FILE
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"model: '{model}': {error}") from error
    found = config.get("model_type")
    if backbone_type(str(found)) is None:
        expected = "expected that of a reward model, such as qwen2_vl_reward"
        raise ValueError(f"model: {path}: model_type: {expected}, found {found!r}")
    low, high = config.get("score_min"), config.get("score_max")
    return (-math.inf, math.inf) if low is None or high is None else (float(low), float(high))


def without_special_tokens(text: str, special: Sequence[str] = ()) -> str:
    """The text with a space for each `<|...|>`, and each token of the model that is written otherwise: a completion
    must not end its own turn, or promise an image.

    Args:
        special: such tokens.

    >>> without_special_tokens("Red.<|im_end|>")
    'Red. '
    >>> without_special_tokens("Red.<end_of_turn>", ["<end_of_turn>"])
    'Red. '
    """
    for token in special:
        text = text.replace(token, " ")
    return _SPECIAL_TOKEN.sub(" ", text)


class RewardModel(Reward):
    """The score of a trained reward model, which sees prompt, images and completion; within the model's bounds.

    The prompt is the trainer's, or the column `prompt`, `question` or `query`; images are those of `images`, `image`
    or another of their usual names (data/rows/row_images.py). `None` for rows without a prompt. Rows without images
    are scored as text. The system text is the one that is stored with the model. Loaded at the first use, once a
    process, and never trained.

    Args:
        model: folder (of a run too) or Hub id.
        batch_size: completions a forward pass.
        device: by default the trainer's, or an accelerator if there is one.
        dtype: of the weights; by default as they are stored.
        sharded: with ZeRO-3, divide the weights between the processes, as the policy's are. All processes must then
            score equally many rows. By default every process has a copy.
        revision: branch, tag or commit of a Hub repository; by default its main branch.
    """

    name = "reward_model"
    columns = QUESTIONS
    types: ClassVar = dict.fromkeys(QUESTIONS, column_types.prompt)
    optional = QUESTIONS
    text_only = False
    needs_model = True

    def __init__(
        self,
        model: str,
        batch_size: int = 16,
        device: str | None = None,
        dtype: str = "auto",
        sharded: bool = False,
        revision: str | None = None,
    ):
        if not isinstance(model, str) or not model:
            raise ValueError(f"model: expected a folder or Hub id, found {model!r:.80}")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size: expected an integer of at least 1, found {batch_size!r:.80}")
        self.minimum, self.maximum = stored_bounds(model)
        self.model = model
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.sharded = sharded
        self.revision = revision

    @cached_property
    def _loaded(self) -> Any:
        from data.io.shards import process_state
        from models.reward.load import load_reward_model

        device = self.device or process_state().device
        if self.sharded:
            return _partitioned(partial(load_reward_model, revision=self.revision), self.model, device, self.dtype)
        with whole_models():
            model, _ = load_reward_model(self.model, device, self.dtype, self.revision)
        return model.requires_grad_(False).eval()

    @cached_property
    def _special(self) -> list[str]:
        """The model's tokens that are no text."""
        from models.families.loading import image_tokens
        from models.reward.encoding import special_tokens

        processor = self._loaded.processor
        return [*special_tokens(processor.tokenizer).values(), *image_tokens(processor)]

    def score(self, text: str, prompt: Any = None, images: Any = None) -> float | None:
        """The score of one completion."""
        return self([text], prompts=[prompt], images=[images])[0]

    def __call__(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        prompts, pictures = prompts_and_images(self.name, len(completions), prompts, images, columns)
        rows = [number for number, prompt in enumerate(prompts) if prompt is not None]
        texts = [without_special_tokens(completion_text(completions[row]), self._special) for row in rows]
        asked, seen = [prompts[row] for row in rows], [pictures[row] for row in rows]
        values = self._loaded.score(asked, seen, texts, batch_size=self.batch_size).tolist() if rows else []
        scores: list[float | None] = [None] * len(completions)
        for row, value in zip(rows, values, strict=True):
            scores[row] = value
        return scores


def _partitioned(load: Any, name: str, device: Any, dtype: str) -> Any:
    """The model with its weights divided between the processes, for inference.

    Raises:
        ValueError: the run is not under ZeRO-3.
    """
    from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        raise ValueError("sharded: expected a run under DeepSpeed ZeRO-3, whose policy is divided too")
    import deepspeed

    from models.families.vision_hooks import install_vision_hooks

    model, _ = load(name, device, dtype)
    model.requires_grad_(False)
    install_vision_hooks(model, distributed=True)
    zero = {key: value for key, value in deepspeed_config()["zero_optimization"].items() if key != "offload_optimizer"}
    precision = {key: value for key, value in deepspeed_config().items() if key in ("bf16", "fp16")}
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **precision}
    deepspeed.initialize(model=model, config=settings)  # puts hooks on the modules, which gather their weights
    return model.eval()
