"""Where a vision-language model is: in a folder or on the Hub, or behind an address; found before data is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from data.errors import UserError
from data.io.records import RecordError
from data.rows.messages import message_texts, promised_images
from models.errors import ModelError
from models.run_folders import find_model, model_fingerprint
from models.served.address import is_server
from models.served.answer_files import AnswerCache
from models.served.arguments import ServerArguments
from models.served.server import ChatServer
from models.vlm import VLM, LocalVLM


class VLMPlace(Protocol):
    """A model that is there, and not loaded yet."""

    def fingerprint(self) -> str:
        """By which results of this model are told from those of others."""

    def load(
        self, min_pixels: int | None, max_pixels: int | None, answers: str | Path | None = None, device: Any = None
    ) -> VLM:
        """The model, ready.

        Args:
            min_pixels, max_pixels: of images; by default the model's own.
            answers: folder where answers of a server are kept.
            device: of a model that is loaded here.
        """


def check_prompts(place: VLMPlace, rows: Sequence[dict[str, Any]], source: str | Path) -> None:
    """Raises `RecordError` for rows whose prompts hold a token for a picture, before the model is loaded.

    Args:
        place: of the model; what a server reads as such, it says by itself.
        rows: with `id` and `prompt`; source: where they come from.
    """
    if not isinstance(place, ModelFolder):
        return
    from models.families.loading import image_tokens, load_processor

    tokens = image_tokens(load_processor(place.name))
    problems = [
        problem
        for row in rows
        for problem in promised_images(
            {"prompt": message_texts(row["prompt"])}, f"{source}: row {row['id']!r}", tokens
        )
    ]
    if problems:
        raise RecordError(problems)


class ModelFolder:
    """A model in a folder, or by its id on the Hub; see `VLMPlace`.

    Raises:
        ModelError: a folder that holds none.
    """

    def __init__(self, name: str):
        self.name = find_model(name)

    def fingerprint(self) -> str:
        return model_fingerprint(self.name)

    def load(
        self, min_pixels: int | None, max_pixels: int | None, answers: str | Path | None = None, device: Any = None
    ) -> VLM:
        return LocalVLM.from_name(self.name, min_pixels, max_pixels, device)


class ModelAddress:
    """A model at a server that has answered; see `VLMPlace`."""

    def __init__(self, server: ChatServer):
        self.server = server

    def fingerprint(self) -> str:
        return f"{self.server.model.name} of a server"  # which may be another one when the work goes on

    def load(
        self, min_pixels: int | None, max_pixels: int | None, answers: str | Path | None = None, device: Any = None
    ) -> VLM:
        from models.served.vlm import ServedVLM

        self.server.cache = AnswerCache(answers)
        return ServedVLM(self.server, min_pixels, max_pixels)


def find_vlm(model: str, server: ServerArguments, device: str | None = None) -> VLMPlace:
    """The model of the option `--model`, which must be there: a server at an address has answered.

    Args:
        device: that the command line asks for.

    Raises:
        ModelError: no folder with a model, or no server with it.
        UserError: options that are of no use for it.
    """
    if is_server(model):
        if device is not None:
            raise UserError("is for a model that is loaded here; a server has its own", "--device")
        return ModelAddress(ChatServer(server.server_settings(model)))
    server.check_unused()
    try:
        return ModelFolder(model)
    except ModelError as error:
        raise error.at("--model") from error
