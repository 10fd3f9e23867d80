"""Which of a server's models is asked."""

from dataclasses import dataclass
from typing import Any

from data.cli.suggestions import closest
from models.served.errors import ServerError


@dataclass(frozen=True)
class ModelCard:
    """A model in the list of a server.

    Attributes:
        name: by which it is asked for.
        owner: what kind of server it is, in small letters: "vllm".
        root: folder or Hub id that was loaded; an empty text where the server does not say so.
    """

    name: str
    owner: str = ""
    root: str = ""


def read_models(answer: Any) -> list[ModelCard]:
    """The models of an answer to `GET /models`.

    Raises:
        ServerError: the answer lists none.
    """
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
        raise ServerError(f"found {str(answer)[:120]!r}; expected a list of models")
    return [
        ModelCard(str(card["id"]), str(card.get("owned_by") or "").lower(), str(card.get("root") or ""))
        for card in cards
    ]


def choose_model(models: list[ModelCard], name: str | None) -> ModelCard:
    """The model of a name, by default the only one.

    Raises:
        ServerError: no such model, or several and no name.
    """
    names = [model.name for model in models]
    if name is None and len(models) == 1:
        return models[0]
    if name is None:
        listed = ", ".join(names) or "none"
        raise ServerError(f"expected one model, or its name in --served_model_name; the server has {listed}")
    if name not in names:
        hint = closest(name, names)
        raise ServerError(f"found no model {name!r}; {hint}the server has {', '.join(names) or 'none'}")
    return models[names.index(name)]
