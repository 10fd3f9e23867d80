"""The options, common to several commands, that say how the server at an address is asked."""

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

from data.cli.arguments import option
from data.cli.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1
from data.errors import UserError
from data.io.shards import process_state
from models.served.server import ServerSettings

KEY_VARIABLE = "VLLM_API_KEY"
"""The environment variable that `vllm serve` itself reads its key from."""


def read_key(variable: str | None) -> tuple[str | None, str]:
    """The key in an environment variable, and the variable's name.

    Raises:
        UserError: there is no such variable, or no key in it. What was given is not repeated: it may be the key.
    """
    name = KEY_VARIABLE if variable is None else variable
    key = os.environ.get(name, "").strip()
    if variable is not None and not key:
        raise UserError(
            "expected the name of an environment variable with a key, found one that is not set; give the name of the "
            "variable, never the key itself",
            "--key_variable",
        )
    return key or None, name


def check_writable(folder: Path | None) -> None:
    """Raises a `UserError` for a place where no folder of answers can be."""
    if folder is None:
        return
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        found = "a folder that cannot be written to" if there.is_dir() else "a file"
        raise UserError(f"expected a folder, found that {there} is {found}", "--answer_cache")


@dataclass(kw_only=True)
class ServerArguments:
    """The server, where the model is an address."""

    served_model_name: str | None = option("of the model at the server; by default its only one", None)
    concurrency: int = option("requests under way at once, of each process", 16, within=AT_LEAST_1)
    request_timeout: float = option("seconds until a request without an answer is made again", 600.0, within=ABOVE_0)
    max_retries: int = option("of a request that fails, with growing pauses", 6, within=AT_LEAST_0)
    key_variable: str | None = option(
        f"environment variable that holds the server's key; by default {KEY_VARIABLE}, if it is set", None
    )
    answer_cache: Path | None = option("folder of answers to share between runs", None)

    def server_settings(self, address: str) -> ServerSettings:
        """Where and how to ask.

        Raises:
            UserError: see `read_key`, `check_writable` and `ServerSettings`.
        """
        key, variable = read_key(self.key_variable)
        check_writable(self.answer_cache)
        return ServerSettings(
            address,
            model=self.served_model_name,
            key=key,
            key_variable=variable,
            concurrency=self.concurrency,
            timeout=self.request_timeout,
            retries=self.max_retries,
        )

    def answer_folder(self, unfinished: Path, restart: bool = False) -> Path:
        """Where answers are kept: in `answer_cache`, else among unfinished work.

        Args:
            unfinished: of the command; emptied with `restart`, because a name of a server's model may stand for other
                weights by now. All processes must call this together.
        """
        if self.answer_cache is not None:
            return self.answer_cache
        state = process_state()
        if restart and state.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        state.wait_for_everyone()
        return unfinished

    def check_unused(self, but: Collection[str] = ()) -> None:
        """Raises a `UserError` for a setting of a server, where there is none.

        Args:
            but: options that others have use for.
        """
        for item in fields(ServerArguments):
            if item.name not in but and getattr(self, item.name) != item.default:
                name = item.name
                raise UserError("is for a server; expected an address in --model, http://host:port/v1", f"--{name}")
