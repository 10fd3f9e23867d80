"""The options, common to several commands, that say which VLM answers questions with shown examples, and how."""

import argparse
from typing import TYPE_CHECKING, Any

from data.candidates.earlier_formats import CONSTRUCT_ORDERS
from data.cli.arguments import at_least
from data.prompts import IN_CONTEXT_STYLES, IN_CONTEXT_SYSTEM_PROMPT
from models.places import model_place

if TYPE_CHECKING:
    from rollouts.frozen_vlm.engine import InContextVLM


def add_vlm_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds them, as a group of their own."""
    group = parser.add_argument_group("the VLM that answers")
    group.add_argument(
        "--model", type=model_place("--model"), required=True, help="Qwen2-VL or Qwen2.5-VL: folder or Hub id"
    )
    group.add_argument("--prompt-style", choices=IN_CONTEXT_STYLES, default="chat", help="how examples are shown")
    group.add_argument("--system-prompt", default=IN_CONTEXT_SYSTEM_PROMPT, metavar="TEXT")
    group.add_argument(
        "--construct-order",
        choices=CONSTRUCT_ORDERS,
        default="left",
        help="left: each newly selected example is shown before the earlier ones; right: after them",
    )
    group.add_argument("--max-new-tokens", type=at_least(1), default=5)
    group.add_argument(
        "--generation-beams", type=at_least(1), default=1, help="1 takes the most likely token each time"
    )
    group.add_argument("--length-penalty", type=float, default=1.0, help="of beam search; 0 compares sums, 1 means")
    group.add_argument(
        "--min-pixels", type=at_least(1), help="smallest width * height of an image; by default the model's"
    )
    group.add_argument(
        "--max-pixels", type=at_least(1), help="largest width * height of an image; by default the model's"
    )
    group.add_argument("--max-batch-tokens", type=at_least(1), help="tokens of a batch, with padding and images")
    group.add_argument("--dtype", default="auto", help="of the weights: auto, float32, bfloat16, float16")
    group.add_argument("--device", help="by default an accelerator if there is one")


def load_in_context_vlm(arguments: argparse.Namespace) -> "InContextVLM":
    """The VLM that the options name, on this process's device.

    Raises:
        ModelError: there is no such model.
    """
    from data.io.shards import process_state
    from rollouts.frozen_vlm.engine import DEFAULT_BATCH_TOKENS, InContextVLM

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


def generation_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How answers are generated, as the options say."""
    return {
        "max_new_tokens": arguments.max_new_tokens,
        "num_beams": arguments.generation_beams,
        "length_penalty": arguments.length_penalty,
    }
