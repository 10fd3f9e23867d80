"""A vLLM server that TRL asks for rollouts: how it is started for a recipe, and whether it computes as the trainer."""

import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from data.errors import UserError
from trainers.vllm_engine.arguments import server_flags

BY_TRL = {"weight_transfer_config": {"backend": "nccl"}, "logprobs_mode": "processed_logprobs"}
"""Options of the server without which TRL cannot send weights, or compare probabilities."""
SCALE_OUT = "0.30"
"""vLLM from which prompts with images need `--enable-scale-out`."""
SECONDS = 2
"""For a server of this network to answer whether it is there."""


class ServerMismatch(UserError, RuntimeError):
    """A server whose rollouts would be those of another model."""


def server_url(args: Any) -> str:
    """As TRL finds it."""
    return args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"


def server_command(name: str, args: Any, settings: Mapping[str, Any], scale_out: bool) -> str:
    """The command that starts a server for a recipe.

    Args:
        name: of the model.
        settings: of `engine_settings`.
        scale_out: vLLM is `SCALE_OUT` or later.

    >>> from types import SimpleNamespace
    >>> args = SimpleNamespace(vllm_server_base_url="http://gpu:9000", vllm_server_port=8000, trust_remote_code=False)
    >>> server_command("outputs/tiny", args, {"dtype": "float32"}, False)[:76]
    'VLLM_SERVER_DEV_MODE=1 vllm serve outputs/tiny --port 9000 --dtype float32 -'
    """
    flags = {"port": urlsplit(server_url(args)).port or args.vllm_server_port, **settings, **BY_TRL}
    flags |= {"trust_remote_code": True} if args.trust_remote_code else {}
    flags |= {"enable_scale_out": True} if scale_out else {}
    return f"VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(name)} {server_flags(flags)}"


def server_answers(url: str) -> bool:
    """Whether a vLLM server is up."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=SECONDS) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def forget_all(url: str, forget_prompts: Callable[[], None]) -> None:
    """Empties a server's caches, of encoded pictures too: TRL has it forget prompts alone when weights are new.

    Args:
        forget_prompts: of TRL's client.
    """
    forget_prompts()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/reset_encoder_cache", method="POST")):
        pass


def check_server(url: str, info: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compares a server with what the trainer needs of it.

    Args:
        url: for messages.
        info: its configuration, as `/server_info` tells it.
        settings: of `engine_settings`.

    Raises:
        ServerMismatch: another precision, or other sizes of images.
    """
    model = info["model_config"]
    given = (model.get("multimodal_config") or {}).get("mm_processor_kwargs") or {}
    found = {"dtype": str(model["dtype"]).removeprefix("torch."), "mm_processor_kwargs": given}
    for name, expected in settings.items():
        if name in found and not _contains(found[name], expected):
            raise ServerMismatch(
                f"vllm_mode: server: {name} of the server at {url} is {found[name]}, of the trainer {expected}; the "
                f"update would not see what the rollout saw. Restart the server with {server_flags({name: expected})}"
            )


def _contains(found: Any, expected: Any) -> bool:
    """Whether all that is expected was found; vLLM adds options of its own."""
    return {**found, **expected} == found if isinstance(expected, Mapping) else found == expected
