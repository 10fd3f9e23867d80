"""The options, common to several commands, that say which VLM answers questions with shown examples, and how."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.candidates.legacy_formats import ConstructOrder
from data.cli.arguments import device_option, dtype_option, option
from data.cli.ranges import AT_LEAST_1
from data.errors import UserError
from data.prompts import IN_CONTEXT_STYLES, IN_CONTEXT_SYSTEM_PROMPT
from models.model_paths import model_option
from models.served.address import is_server
from models.served.arguments import ServerArguments
from models.vlm_places import VLMPlace, find_vlm

if TYPE_CHECKING:
    from rollouts.frozen_vlm.engine import InContextVLM
    from rollouts.frozen_vlm.plain_engine import PlainInContextVLM


@dataclass(kw_only=True)
class VLMArguments:
    """The VLM that answers."""

    model: str = model_option("vision-language model: folder or Hub id")
    prompt_style: str = option("how examples are shown", "chat", choices=IN_CONTEXT_STYLES)
    system_prompt: str = option("text before everything that is shown", IN_CONTEXT_SYSTEM_PROMPT)
    construct_order: ConstructOrder = option(
        "left: each newly selected example is shown before the earlier ones; right: after them", "left"
    )
    max_new_tokens: int = option("of an answer", 5, within=AT_LEAST_1)
    generation_beams: int = option("1 takes the most likely token each time", 1, within=AT_LEAST_1)
    length_penalty: float = option("of beam search; 0 compares sums, 1 means", 1.0)
    min_pixels: int | None = option(
        "smallest width * height of an image; by default the model's", None, within=AT_LEAST_1
    )
    max_pixels: int | None = option(
        "largest width * height of an image; by default the model's", None, within=AT_LEAST_1
    )
    max_batch_tokens: int | None = option("tokens of a batch, with padding and images", None, within=AT_LEAST_1)
    dtype: str = dtype_option()
    device: str | None = device_option()


@dataclass(kw_only=True)
class ServedVLMArguments(VLMArguments, ServerArguments):
    """The VLM that answers, which may be a server's."""

    model: str = model_option("vision-language model: folder, Hub id, or http://host:port/v1 of a server", served=True)

    def server(self) -> VLMPlace | None:
        """Where the VLM is, if that is a server, which has answered.

        Raises:
            UserError: no such server, or options that are of no use for what it is.
        """
        if not is_server(self.model):
            self.check_unused(but=["answer_cache"])
            return None
        if self.generation_beams > 1:
            raise UserError(
                f"a server is asked for the likeliest token each time; expected 1, found {self.generation_beams}",
                "--generation_beams",
            )
        for name, usual in (("dtype", "auto"), ("max_batch_tokens", None)):
            if getattr(self, name) != usual:
                raise UserError("is for a model that is loaded here; a server has its own", f"--{name}")
        return find_vlm(self.model, self)


def load_in_context_vlm(arguments: VLMArguments) -> "InContextVLM | PlainInContextVLM":
    """The VLM that the options name, on this process's device.

    Raises:
        ModelError: there is no such model.
    """
    from data.io.shards import process_state
    from rollouts.frozen_vlm.engine import InContextVLM
    from rollouts.frozen_vlm.requests import DEFAULT_BATCH_TOKENS

    return InContextVLM.load(
        arguments.model,
        device=arguments.device or process_state().device,
        dtype=arguments.dtype,
        min_pixels=arguments.min_pixels,
        max_pixels=arguments.max_pixels,
        prompt_style=arguments.prompt_style,
        system_prompt=arguments.system_prompt,
        max_batch_tokens=arguments.max_batch_tokens or DEFAULT_BATCH_TOKENS,
    )


def generation_options(arguments: VLMArguments) -> dict[str, Any]:
    """How answers are generated, as the options say."""
    return {
        "max_new_tokens": arguments.max_new_tokens,
        "num_beams": arguments.generation_beams,
        "length_penalty": arguments.length_penalty,
    }
