"""An agent that asks a vision-language model about every image."""

import re
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from data.reports.pool import ItemId, load_pool
from filter_agents.base import FilterAgent, Instruction
from models.served.address import checked_address, is_server
from models.served.arguments import ServerArguments
from models.vlm import VLM, LocalVLM
from models.vlm_places import VLMPlace, find_vlm

DEFAULT_QUESTION = "Is this a clear and useful image?"
MAX_QUESTION_LENGTH = 500
_SPECIAL_TOKEN = re.compile(r"<\|[^<|>]*\|>")


class VlmJudge(FilterAgent):
    """Keeps the images for which a model finds "yes" likelier than "no" as its answer to the prompt.

    The prompt is the question, cut after 500 characters and without special tokens (one could promise an image that
    is not there, or end the question and give the answer). Default for an empty prompt: whether the image is clear and
    useful.

    Args:
        model: folder or Hub id of a vision-language model, loaded at the first use; or the address of a server, http://host:port/v1,
            which is asked for its models before data is read.
        batch_size: images a forward pass.
        max_pixels: largest width * height that the judge sees.
        revision: branch, tag or commit of a Hub repository; by default its main branch.
        served_model_name, concurrency, key_variable: of a server, as for commands (`models/served/arguments.py`).
        answer_cache: folder of a server's answers, to share between runs.

    Raises:
        UserError: an address that cannot be one, a variable that holds no key, or settings of a server without one.
    """

    name = "vlm_judge"
    description = "keeps pictures for which a model answers the prompt, a question, with yes"

    def __init__(
        self,
        model: str,
        batch_size: int = 8,
        max_pixels: int = 512 * 512,
        revision: str | None = None,
        served_model_name: str | None = None,
        concurrency: int = 16,
        key_variable: str | None = None,
        answer_cache: str | None = None,
    ):
        self.model_name = model
        self.revision = revision
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.server = ServerArguments(
            served_model_name=served_model_name,
            concurrency=concurrency,
            key_variable=key_variable,
            answer_cache=None if answer_cache is None else Path(answer_cache),
        )
        if not is_server(model):
            self.server.check_unused()
        else:
            self.server.server_settings(
                checked_address(model)
            )  # only said to be right: prompts name agents without them

    @cached_property
    def _place(self) -> VLMPlace:
        return find_vlm(self.model_name, self.server)

    def check_there(self) -> None:
        if is_server(self.model_name):
            self._place  # noqa: B018  a server that has answered once

    @cached_property
    def _vlm(self) -> VLM:
        if is_server(self.model_name):
            return self._place.load(None, None, self.server.answer_cache)
        return LocalVLM.from_name(self.model_name, revision=self.revision)

    def read_prompt(self, prompt: str) -> Instruction:
        question = " ".join(_SPECIAL_TOKEN.sub(" ", prompt[:MAX_QUESTION_LENGTH]).split())
        return Instruction((question or DEFAULT_QUESTION,), bool(question))

    def keep(self, pool_folder: str, parameters: tuple) -> list[ItemId]:
        bounds = self._vlm.reader(self.max_pixels)
        pool = load_pool(pool_folder)
        kept: list[ItemId] = []
        size = self._vlm.chunk_size(self.batch_size)
        starts = range(0, len(pool), size)
        for start in tqdm(starts, desc="judging", unit="batch", disable=len(starts) < 10):
            items = pool.items[start : start + size]
            images = [bounds.open(pool.image_path(item)) for item in items]
            answers = self._vlm.answers_yes(images, *parameters)
            kept.extend(item.id for item, yes in zip(items, answers, strict=True) if yes)
        return kept
