"""An agent that asks a vision-language model about every image."""

import re
from functools import cached_property

from tqdm import tqdm

from data.io.pixel_bounds import PixelBounds
from data.reports.pool import ItemId, load_pool
from filter_agents.base import FilterAgent, Instruction

DEFAULT_QUESTION = "Is this a clear and useful image?"
MAX_QUESTION_LENGTH = 500
_SPECIAL_TOKEN = re.compile(r"<\|[^<|>]*\|>")


class VlmJudge(FilterAgent):
    """Keeps the images for which a model finds "yes" likelier than "no" as its answer to the prompt.

    The prompt is the question, cut after 500 characters and without special tokens (one could promise an image that
    is not there, or end the question and give the answer). Default for an empty prompt: whether the image is clear and
    useful.

    Args:
        model: folder or Hub id of a Qwen2-VL; loaded at the first use.
        batch_size: images a forward pass.
        max_pixels: largest width * height that the judge sees.
        revision: branch, tag or commit of a Hub repository; by default its main branch.
    """

    name = "vlm_judge"
    description = "keeps pictures for which a model answers the prompt, a question, with yes"

    def __init__(self, model: str, batch_size: int = 8, max_pixels: int = 512 * 512, revision: str | None = None):
        self.model_name = model
        self.revision = revision
        self.batch_size = batch_size
        self.max_pixels = max_pixels

    @cached_property
    def _loaded(self):
        from models.families.loading import load_vlm

        return load_vlm(self.model_name, revision=self.revision)

    def read_prompt(self, prompt: str) -> Instruction:
        question = " ".join(_SPECIAL_TOKEN.sub(" ", prompt[:MAX_QUESTION_LENGTH]).split())
        return Instruction((question or DEFAULT_QUESTION,), bool(question))

    def keep(self, pool_folder: str, parameters: tuple) -> list[ItemId]:
        from models.generation import answers_yes

        model, processor = self._loaded
        bounds = PixelBounds(0, self.max_pixels, model.config.vision_config.patch_size)
        pool = load_pool(pool_folder)
        kept: list[ItemId] = []
        starts = range(0, len(pool), self.batch_size)
        for start in tqdm(starts, desc="judging", unit="batch", disable=len(starts) < 10):
            items = pool.items[start : start + self.batch_size]
            images = [bounds.open(pool.image_path(item)) for item in items]
            answers = answers_yes(model, processor, images, *parameters)
            kept.extend(item.id for item, yes in zip(items, answers, strict=True) if yes)
        return kept
