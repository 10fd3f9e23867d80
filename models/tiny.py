"""A small model with random weights, of the real classes, for machines without internet or accelerator.

    python -m models.tiny --output_dir outputs/tiny --corpus outputs/data/train.jsonl

A Qwen2-VL, or of another `--family` (models/tiny_families/). Saves model, tokenizer and processor, loadable by
`AutoModelForImageTextToText` and `AutoProcessor`. The tokenizer is a byte-level BPE with Qwen2's pre-tokenisation,
trained on the corpus (any text file) so that its sequences are short.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from data.cli.arguments import OptionError, option, seed_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1
from data.io.records import RecordError
from models.tiny_families import gemma3, gemma4, idefics, internvl, llava_onevision, qwen3_5, qwen3_vl
from models.tiny_families.size import TinySize

PATCH_SIZE = 8
MERGE_SIZE = 2
MAX_PIXELS = 64 * 64
"""16 visual tokens for the largest image."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# ChatML with vision blocks, as Qwen2-VL writes it.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

DEFAULT_CORPUS = (
    "You are a helpful assistant. system user assistant",
    "You select filtering agents for a data set. Read the report and choose the agents that mend what stands out, "
    "with a prompt for each. The report shows what to filter. Agents: Answer in this format, one agent element for "
    "each: removes unsharp, under- and overexposed, low-resolution, elongated pictures, verbatim duplicates, "
    "look-alikes, truncated or bloated questions, questions without a clear answer; keep what is good",
    "<selection><reasoning>why</reasoning><agents><agent><name>agent name</name><prompt>what to keep</prompt></agent>"
    "<agent><name></name><prompt></prompt></agent></agents></selection>",
    "Answer the question about the image with a single word or phrase. what color is the shape? what shape is in "
    "the image? is there a red circle? yes no blue green gray teal black yellow brown triangle rectangle <answer>",
    "0 1 2 3 4 5 6 7 8 9",
)


def _trained_bpe(corpus: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE with Qwen2's pre-tokenisation."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(corpus, trainer)
    return bpe


def build_tokenizer(
    corpus: Iterable[str],
    vocab_size: int = 1024,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    chat_template: str = CHAT_TEMPLATE,
    named: Mapping[str, str] | None = None,
) -> Any:
    """A `Qwen2Tokenizer` with a small vocabulary, trained on texts.

    Args:
        special_tokens: with those that end turns and fill up rows.
        named: of these, the tokens that a processor reads as attributes of the tokenizer.
    """
    from transformers import Qwen2Tokenizer

    trained = json.loads(_trained_bpe(corpus, vocab_size - len(special_tokens)).to_str())["model"]
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    others = [token for token in special_tokens if token not in ends.values()]
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        extra_special_tokens=dict(named) if named else others,
        chat_template=chat_template,
        **ends,
    )
    return _with_special_tokens(tokenizer, others, named) if named else tokenizer


def _with_special_tokens(tokenizer: Any, tokens: Iterable[str], named: Mapping[str, str]) -> Any:
    """The tokenizer with those of the tokens that it has no name for."""
    others = [token for token in tokens if token not in named.values()]
    tokenizer.add_special_tokens({"additional_special_tokens": others}, replace_extra_special_tokens=False)
    return tokenizer


def build_fast_tokenizer(corpus: Iterable[str], vocab_size: int, family: ModuleType) -> Any:
    """A tokenizer with the special tokens and turns of a family that has no tokenizer of Qwen's, trained on texts.

    Args:
        family: a module of `models.tiny_families` with `ROLES`, `NAMED_TOKENS`, `SPECIAL_TOKENS` and `CHAT_TEMPLATE`.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained_bpe(corpus, vocab_size - len(family.SPECIAL_TOKENS)),
        extra_special_tokens=dict(family.NAMED_TOKENS),
        chat_template=family.CHAT_TEMPLATE,
        **family.ROLES,
    )
    others = [token for token in family.SPECIAL_TOKENS if token not in family.ROLES.values()]
    return _with_special_tokens(tokenizer, others, family.NAMED_TOKENS)


def build_chatml_tokenizer(corpus: Iterable[str], vocab_size: int, family: Any) -> Any:
    """A `Qwen2Tokenizer` with the tokens by which another family writes images.

    Args:
        family: a module of `models.tiny_families` with `IMAGE_BLOCKS`, `NAMED_TOKENS` and `SPECIAL_TOKENS`.
    """
    template = CHAT_TEMPLATE
    for block, own in family.IMAGE_BLOCKS.items():
        template = template.replace(block, own)
    return build_tokenizer(corpus, vocab_size, family.SPECIAL_TOKENS, template, family.NAMED_TOKENS)


def build_processor(tokenizer: Any, max_pixels: int = MAX_PIXELS, merge_size: int = MERGE_SIZE) -> Any:
    """A `Qwen2VLProcessor` for images of at most `max_pixels` pixels; `merge_size` as the model's."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    sizes = {
        "patch_size": PATCH_SIZE,
        "merge_size": merge_size,
        "size": {"shortest_edge": (PATCH_SIZE * merge_size) ** 2, "longest_edge": max_pixels},
    }
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: Any,
    hidden_size: int = 128,
    layers: int = 2,
    initializer_range: float = 0.08,
    seed: int = 0,
    merge_size: int = MERGE_SIZE,
    vision_depth: int = 2,
    vision_width: int = 64,
    vision_initializer_range: float | None = None,
) -> Any:
    """A `Qwen2VLForConditionalGeneration` with random float32 weights.

    Args:
        hidden_size: of the language model; a multiple of 32, the width of a head.
        initializer_range: standard deviation of the initial weights. At this size the usual 0.02 does not learn.
        merge_size: a visual token is made of this many patches in height and width.
        vision_depth, vision_width: layers and width of the vision tower.
        vision_initializer_range: of the vision tower's weights; by default the same.
    """
    from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration, set_seed

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    heads = hidden_size // 32
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 2),
            "max_position_embeddings": 4096,
            "initializer_range": initializer_range,
            # Sections for time, height and width add up to half of a head's 32 dimensions.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": vision_depth,
            "embed_dim": vision_width,
            "hidden_size": hidden_size,  # width of the language model, by Qwen2-VL's naming
            "num_heads": 2,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": merge_size,
            "initializer_range": initializer_range if vision_initializer_range is None else vision_initializer_range,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    set_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    return model


_CHATML = {"internvl": internvl, "llava_onevision": llava_onevision}
_GEMMA = {"gemma3": (gemma3, "<end_of_turn>"), "gemma4": (gemma4, "<turn|>")}

_QWEN = {
    "qwen3_vl": qwen3_vl.build_model,
    "qwen3_vl_moe": qwen3_vl.build_mixture,
    "qwen3_5": qwen3_5.build_model,
    "qwen3_5_moe": qwen3_5.build_mixture,
}

FAMILIES = ("qwen2_vl", *_QWEN, *_CHATML, "idefics3", "smolvlm", *_GEMMA)
"""Model types of which there is a tiny model."""


def _parts(family: str, corpus: Iterable[str], vocab_size: int, size: TinySize) -> tuple[Any, Any, tuple[str, ...]]:
    """Model, processor, and the tokens at which an answer ends, of a family that is not Qwen2-VL."""
    if family in _GEMMA:
        gemma, end = _GEMMA[family]
        tokenizer = build_fast_tokenizer(corpus, vocab_size, gemma)
        return gemma.build_model(tokenizer, size), gemma.build_processor(tokenizer), ("<eos>", end)
    if family in ("idefics3", "smolvlm"):
        tokenizer, smol = build_fast_tokenizer(corpus, vocab_size, idefics), family == "smolvlm"
        model = (idefics.build_smolvlm_model if smol else idefics.build_model)(tokenizer, size)
        processor = (idefics.build_smolvlm_processor if smol else idefics.build_processor)(tokenizer)
        return model, processor, ("<end_of_utterance>",)
    ends = ("<|im_end|>", "<|endoftext|>")
    if family in _CHATML:
        own = _CHATML[family]
        tokenizer = build_chatml_tokenizer(corpus, vocab_size, own)
        return own.build_model(tokenizer, size), own.build_processor(tokenizer), ends
    tokenizer = build_tokenizer(corpus, vocab_size)
    return _QWEN[family](tokenizer, size), qwen3_vl.build_processor(tokenizer), ends


def build_family(family: str, corpus: Iterable[str], vocab_size: int, size: TinySize) -> tuple[Any, Any]:
    """A tiny model of a family, one of `FAMILIES`, and its processor."""
    from transformers import GenerationConfig

    if family == "qwen2_vl":
        tokenizer = build_tokenizer(corpus, vocab_size)
        return build_model(tokenizer, size.hidden_size, size.layers, seed=size.seed), build_processor(tokenizer)
    model, processor, ends = _parts(family, corpus, vocab_size, size)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(list(ends)), pad_token_id=tokenizer.pad_token_id
    )
    return model, processor


def _read_corpus(path: Path) -> list[str]:
    """Lines of a text file; of a JSONL file, the strings in its rows.

    Raises:
        RecordError: no such file, not UTF-8, or a line that is not JSON.
    """
    if not path.is_file():
        raise RecordError([f"--corpus {path}: no such file"])
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError([f"--corpus {path}: {error}"]) from error
    lines = text.split("\n")  # strings in JSON may hold what splitlines() splits at
    if path.suffix != ".jsonl":
        return lines
    texts: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.extend(_strings(json.loads(line)) if line.strip() else ())
        except ValueError as error:
            raise RecordError([f"--corpus {path}: line {number}: {error}"]) from error
    return texts


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


@dataclass(kw_only=True)
class TinyArguments:
    """How large the model is, and what its tokenizer is trained on."""

    output_dir: Path = option("folder to write the model to")
    family: str = option("model type", "qwen2_vl", choices=FAMILIES)
    seed: int = seed_option("of the random weights")
    corpus: Path | None = option("text or JSONL file that the tokenizer is trained on", None)
    vocab_size: int = option("tokens, as far as the corpus has so many", 1024)
    hidden_size: int = option("a multiple of 32", 128)
    layers: int = option("of the language model", 2, within=AT_LEAST_1)

    def __post_init__(self):
        modules = {"gemma3": gemma3, "gemma4": gemma4, "idefics3": idefics, "smolvlm": idefics} | _CHATML
        own = modules.get(self.family)
        least = 256 + len(SPECIAL_TOKENS if own is None else own.SPECIAL_TOKENS)
        if self.family == "smolvlm" and find_spec("num2words") is None:
            raise OptionError("--family smolvlm: its processor needs a package: pip install num2words")
        if self.hidden_size < 32 or self.hidden_size % 32:
            raise OptionError(f"--hidden_size: expected a multiple of 32, found {self.hidden_size}")
        if self.vocab_size < least:
            raise OptionError(
                f"--vocab_size: expected at least {least} (bytes and special tokens), found {self.vocab_size}"
            )


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(TinyArguments, argv)
    corpus = list(DEFAULT_CORPUS)
    if arguments.corpus is not None:
        corpus += _read_corpus(arguments.corpus)
    size = TinySize(arguments.hidden_size, arguments.layers, arguments.seed)
    model, processor = build_family(arguments.family, corpus, arguments.vocab_size, size)
    model.save_pretrained(arguments.output_dir)
    processor.save_pretrained(arguments.output_dir)
    tokens = len(processor.tokenizer)
    print(f"{model.num_parameters():,} parameters, {tokens} tokens, written to {arguments.output_dir}")


if __name__ == "__main__":
    main()
