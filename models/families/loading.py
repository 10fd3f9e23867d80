"""Loading a vision-language model and its processor; what a processor says of images, and how it writes chats."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from data.io.pixel_bounds import ImageReader
from data.rows.messages import in_parts
from models.families.registry import family_of_processor
from models.hub_revisions import adapter_base
from models.model_paths import loading


def image_tokens(processor) -> list[str]:
    """Tokens that stand for pictures, of those that the processor's tokenizer has. A model must not write them."""
    tokenizer = getattr(processor, "tokenizer", processor)
    found = family_of_processor(processor).forbidden_tokens(processor)
    ids = tokenizer.convert_tokens_to_ids(found)  # quick, while the whole vocabulary takes a twentieth of a second
    return [token for token, known in zip(found, ids, strict=True) if known not in (None, tokenizer.unk_token_id)]


def image_token_ids(processor) -> list[int]:
    """Their ids."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return tokenizer.convert_tokens_to_ids(image_tokens(processor))


def load_vlm(name_or_path: str, device=None, dtype: str = "auto", revision: str | None = None):
    """Model and processor of a folder or Hub id, ready to generate. Adapters are put on the model that they name.

    Args:
        device: where to put the model; by default an accelerator if there is one.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        ModelError: there is no such model, or it is of another kind.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator or "cpu"
    with loading(name_or_path):
        base = adapter_base(name_or_path, revision)
        model = AutoModelForImageTextToText.from_pretrained(
            name_or_path,
            dtype=dtype,
            revision=revision if base is None else base.revision,
            adapter_kwargs={"revision": revision},
        )
        return without_router_losses(model).to(device).eval(), load_processor(name_or_path, revision=revision)


def without_router_losses(model: Any) -> Any:
    """The model, which computes the loss of its routers only where it is asked to, if it is a mixture of experts.

    The configuration may ask for it at every call, as TRL leaves it behind; but it is computed of whole rows alone,
    and fails at the later tokens of an answer.
    """
    text = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False
    return model


def load_processor(
    name_or_path: str,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
):
    """The processor, padding on the left, with the pixel bounds of a recipe (by default its own).

    Of a model that reads texts only, its tokenizer.

    Args:
        revision: branch, tag or commit of a Hub repository.
        trust_remote_code: run the code that the repository holds.

    Raises:
        ModelError: there is no such model.
        BoundsError: a lower bound above the upper one, or bounds that the family does not have.
    """
    from transformers import AutoProcessor

    with loading(name_or_path):
        processor = AutoProcessor.from_pretrained(
            name_or_path, padding_side="left", revision=revision, trust_remote_code=trust_remote_code
        )
    if min_pixels is not None or max_pixels is not None:
        family_of_processor(processor).set_bounds(processor, min_pixels, max_pixels)
    return processor


def image_reader(processor, most_pixels: int | None = None) -> ImageReader:
    """How images are read for a processor; see `Family.reader`."""
    return family_of_processor(processor).reader(processor, most_pixels)


def render(processor, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    """A conversation as the chat template writes it.

    A processor gets texts as parts: published templates (Idefics3, SmolVLM, LLaVA-OneVision) write nothing of others.

    Args:
        processor: of a vision-language model, or the tokenizer of one that reads texts only.
        options: of `apply_chat_template`.
    """
    turns = in_parts(messages) if hasattr(processor, "image_processor") else list(messages)
    return processor.apply_chat_template(turns, tokenize=False, **options)


def space_before_answers(processor) -> str:
    """White space that the chat template writes between a prompt and its answer: what a model says first by itself.

    Templates of Idefics3 and SmolVLM open an answer with `Assistant:` and go on with ` yes`; most write none.
    """
    return _space(processor, processor.chat_template)


@lru_cache(maxsize=8)
def _space(processor, template: str) -> str:
    asked, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}
    prompt = render(processor, [asked], add_generation_prompt=True)
    behind = render(processor, [asked, answer]).removeprefix(prompt)
    space = behind[: len(behind) - len(behind.lstrip())]
    return space if behind.startswith(f"{space}x") else ""
