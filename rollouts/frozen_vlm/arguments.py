"""The options, common to several commands, that say which VLM answers questions with shown examples, and how."""

import argparse

from data.candidates.earlier_formats import CONSTRUCT_ORDERS
from data.cli.arguments import at_least
from data.prompts import IN_CONTEXT_STYLES, IN_CONTEXT_SYSTEM_PROMPT
from models.places import model_place


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
