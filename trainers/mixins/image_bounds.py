"""How prompts with images are read: bounds of their size, in recipes and from Python, and the processor with them."""

from dataclasses import dataclass, field
from typing import Any

from transformers import ProcessorMixin

from models.families.loading import load_processor
from models.hub_revisions import hub_options
from trainers.setup.model import init_kwargs, place_of_processor

SIZES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Setting -> what image processors call it."""


@dataclass
class PixelArguments:
    """What configurations of models that see images say of them. Stands before `transformers.TrainingArguments`."""

    min_pixels: int | None = field(default=None, metadata={"help": "Smallest width * height of an image."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest width * height of an image."})

    def __post_init__(self):
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels ({self.min_pixels}) must not exceed max_pixels ({self.max_pixels})")
        super().__post_init__()


@dataclass
class PromptArguments(PixelArguments):
    """The same, and how long prompts may be."""

    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Tokens a prompt may have, images included; a longer one is an error."}
    )


def hub_of(args: Any) -> dict[str, Any]:
    """What everything that is loaded for a trainer made from Python is asked for (`models.hub_revisions`)."""
    return {"trust_remote_code": getattr(args, "trust_remote_code", False)} | hub_options(init_kwargs(args))


def processor_of(model: Any, args: Any, given: Any = None) -> Any:
    """The processor of a trainer made from Python: the one that is given, or the model's own, with `args`' bounds.

    Args:
        model: a folder or Hub id, or a model, which knows its own.
        args: with `PixelArguments`.

    Raises:
        ValueError: bounds of `args` that are not those of `given`, or of a model that sees no images.
        ModelError: there is no such model.
    """
    bounds = {key: getattr(args, key) for key in SIZES if getattr(args, key) is not None}
    if given is None:
        name = model if isinstance(model, str) else model.config.name_or_path
        place, hub = place_of_processor(name, hub_of(args))
        given = load_processor(place, **hub)
        if isinstance(given, ProcessorMixin):
            return load_processor(place, **bounds, **hub) if bounds else given
    for key, asked in bounds.items():
        if not isinstance(given, ProcessorMixin):
            raise ValueError(f"{key}: {type(given).__name__} reads texts only; leave it out")
        found = given.image_processor.size[SIZES[key]]
        if found != asked:
            raise ValueError(f"{key}: the configuration says {asked}, the processing_class {found}; leave out one")
    return given
