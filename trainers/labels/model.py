"""The factor predictor that learns: loaded, or made as the settings say."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig

from data.factor_labels.clusters import FactorSet
from models.errors import ModelError
from models.factors.model import FactorConfig, FactorPredictor
from models.factors.predictor import from_backbone, load_factor_predictor, new_predictor
from trainers.labels.data import FactorArguments
from trainers.run.console import say
from trainers.setup.model import hub_arguments
from trainers.setup.recipes import RecipeError

NEW_BACKBONE = "a new backbone"


def make_predictor(
    given: str | Mapping[str, Any], args: Any, names: Mapping[str, str], revision: str | None = None
) -> FactorPredictor:
    """The predictor of a folder or Hub id, or one with a new head, whose first weights follow `args.seed`.

    Args:
        given: folder or Hub id of a predictor, an image model or a vision-language model; or the configuration
            of a new backbone.
        names: of the factors, by their ids.

    Raises:
        OSError, ValueError: it cannot be loaded or built.
    """
    torch.manual_seed(args.seed)
    settings = args.model_settings(names)
    if not isinstance(given, str):
        return new_predictor(dict(given), list(names), **settings)
    if stored_factors(given, revision) is None:
        return from_backbone(given, list(names), args.min_pixels, args.max_pixels, revision, **settings)
    return load_factor_predictor(given, "cpu", revision).train()


def stored_factors(name: str, revision: str | None = None) -> list[str] | None:
    """The factors of a predictor in a folder or Hub repository; `None` where another model is."""
    config = AutoConfig.from_pretrained(name, revision=revision)
    return config.factors if isinstance(config, FactorConfig) else None


def check_factors(name: str, model: FactorPredictor, factors: Sequence[str]) -> None:
    """Raises `RecipeError` for a model that predicts other factors than the data set has."""
    if model.config.factors != list(factors):
        found = ", ".join(model.config.factors)
        raise RecipeError(f"{name} predicts {found}; the data set has {', '.join(factors)}")


def load_predictor(script: FactorArguments, args: Any, model_args: Any, factors: FactorSet) -> FactorPredictor | None:
    """The predictor that a recipe names or describes, after its memory estimate is printed; `None` of one that is out
    of reach, where the recipe is only validated.

    Raises:
        RecipeError: neither or both are given, it cannot be loaded, or it predicts other factors.
    """
    name = model_args.model_name_or_path
    if (name is None) == (script.backbone is None):
        found = "neither" if name is None else "both"
        raise RecipeError(f"expected either model_name_or_path or backbone, found {found}")
    given: Any = script.backbone if name is None else name
    try:
        model = make_predictor(given, args, factors.names, hub_arguments(args, model_args)["revision"])
    except (OSError, ValueError) as error:
        if script.validate_only and _is_out_of_reach(error):
            say(f"memory estimate: not possible, {name} cannot be reached from here")
            return None
        where = "backbone" if name is None else f"model_name_or_path: '{name}' cannot be loaded"
        raise RecipeError(f"{where}: {error}") from error
    check_factors(f"model_name_or_path: '{name}'", model, factors.ids)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    say(
        f"memory estimate: {(4 * parameters + 12 * trained) / 1e9:.2f} GB for {parameters / 1e6:.1f} M parameters, "
        f"{trained / 1e6:.1f} M of them trained, without a batch's activations"
    )
    return model


def _is_out_of_reach(error: Exception) -> bool:
    """Whether a model was not found, rather than found to be wrong."""
    return isinstance(error.__cause__ if isinstance(error, ModelError) else error, OSError)
