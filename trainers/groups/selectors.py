"""The example selector that a recipe names or describes, and the tables of embeddings or the records that it reads."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoConfig, AutoModel

from data.candidates.embedding_table import EmbeddingTable
from data.candidates.examples import load_examples
from data.io.records import RecordError
from data.vqa import VqaRecord
from models.selectors.encoder_inputs import InputReader
from models.selectors.encoders import load_selector_encoders
from models.selectors.encoding import EncodingSelector, EncodingSelectorConfig
from models.selectors.gpt2 import GPT2SelectorConfig
from models.selectors.load import load_encoding_selector, load_selector
from models.selectors.pointer import PointerSelectorConfig
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import HeldOutId, StoredGroup
from trainers.groups.policies import NEW_SELECTOR, PolicySpec
from trainers.groups.selector_policy import EncodingPolicy, RecordTable, SelectorPolicy
from trainers.run.console import say
from trainers.setup.model import hub_arguments
from trainers.setup.recipes import RecipeError
from trainers.setup.zero_stage import leave_weights_whole

MODEL_TYPE = EncodingSelectorConfig.model_type
TABLES, DATA = ("query_table", "example_table"), ("query_data", "example_data")
ENCODERS = ("text_encoder", "image_encoder")
REVISIONS = tuple(f"{key}_revision" for key in ENCODERS)
OWN_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "example_text")
"""Keys of a recipe's `selector`, beside the encoders; the others are those of `PointerSelectorConfig`."""


def reads_records(script: GroupArguments, model_type: str) -> bool:
    """Whether the recipe's selector reads records, in place of tables of embeddings.

    One with encoders of its own does, but for a stored one that is given tables: it is trained without its encoders.

    Raises:
        RecipeError: keys that contradict each other or the model, or are missing.
    """
    data = [key for key in DATA if getattr(script, key) is not None]
    tables = [key for key in TABLES if getattr(script, key) is not None]
    if model_type != MODEL_TYPE:
        if data:
            raise RecipeError(f"{data[0]}: only model_type {MODEL_TYPE} reads records, found {model_type}")
        return False
    if data and tables:
        raise RecipeError(f"{data[0]} and {tables[0]} both say what the selector reads: set one pair of them")
    if tables and script.selector is None:
        return False
    if len(data) < len(DATA):
        missing = next(key for key in DATA if key not in data)
        raise RecipeError(
            f"{missing}: model_type {MODEL_TYPE} needs the VQA records of queries and examples (query_data, "
            f"example_data), found {', '.join(data + tables) or 'neither'}"
        )
    return True


# -- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """What is known of a model before it is loaded.

    Attributes:
        key: of the recipe, for messages.
        read: loads tokenizer and image processor.
        load: loads the model.
    """

    key: str
    example_text: str
    has_images: bool
    stop: bool
    read: Callable[[], InputReader]
    load: Callable[[], nn.Module]


def _new(settings: dict[str, Any], seed: int) -> _Model:
    """The model that a recipe's `selector` describes.

    Raises:
        RecipeError: an unknown key or value; lists what is allowed.
    """
    settings = {key: value for key, value in settings.items() if key != "model_type"}
    encoders = {key: settings.pop(key, None) for key in ENCODERS}
    revisions = {key: settings.pop(key, None) for key in REVISIONS}
    own = {key: settings.pop(key) for key in OWN_FIELDS if key in settings}
    inner = {"seed": seed} | settings
    for key, name in encoders.items():
        if name is not None and not isinstance(name, str):
            raise RecipeError(f"selector: {key}: expected a folder or Hub id, found {name!r}")
        revision = revisions[f"{key}_revision"]
        if revision is not None and not (isinstance(revision, str) and name):
            expected = "a branch, tag or commit" if name else f"none without {key}"
            raise RecipeError(f"selector: {key}_revision: expected {expected}, found {revision!r}")
    if "embedding_size" in inner:
        raise RecipeError("selector: embedding_size: the encoders decide it; leave it out")
    try:
        named = {key: {} for key, name in encoders.items() if name is not None}  # their shapes are looked up later
        config = EncodingSelectorConfig(**named, **own)
        stop = PointerSelectorConfig(**inner).stop
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"selector: {error}; and {MODEL_TYPE} has {', '.join(ENCODERS + REVISIONS + OWN_FIELDS)}"
        ) from error
    return _Model(
        "selector",
        config.example_text,
        encoders["image_encoder"] is not None,
        stop,
        read=lambda: InputReader.of_encoders(**encoders, **revisions),
        load=lambda: EncodingSelector.from_encoders(**encoders, **revisions, selector=inner, **own),
    )


def _stored(name: str, revision: str | None, config: EncodingSelectorConfig) -> _Model:
    return _Model(
        "model_name_or_path",
        config.example_text,
        config.image_encoder is not None,
        (config.selector or {}).get("stop", False),
        read=lambda: InputReader.of_selector(name, config, revision),
        load=lambda: load_encoding_selector(name, revision),
    )


def encoding_selector_spec(
    script: GroupArguments, args: Any, name: str | None, config: Any, revision: str | None
) -> PolicySpec:
    """The selector with its encoders, and the records that it reads.

    Args:
        name, revision: of a stored model, whose configuration is `config`; the name is `None` for a new one.

    Raises:
        RecipeError: encoders, tokenizer or image processor are out of reach (unless the recipe is only validated).
        RecordError: malformed records.
    """
    model = _new(script.selector, args.seed) if name is None else _stored(name, revision, config)
    reader = _reader(model, required=not script.validate_only)
    queries, examples = load_selection_records(script)
    policy = EncodingPolicy(
        RecordTable(queries, "question", model.has_images),
        RecordTable(examples, model.example_text, model.has_images),
        reader,
        args.label_smoothing_factor,
    )

    def load() -> nn.Module:
        leave_weights_whole(args, "a selector")
        try:
            return model.load()
        except (ValueError, OSError) as error:
            raise RecipeError(f"{model.key}: {error}") from error

    return PolicySpec(
        policy,
        load,
        by_length=not model.stop,
        base_model=name or NEW_SELECTOR,
        query_content=_id_of,
        processor=reader,
        records={"queries": queries, "examples": examples},
    )


def _reader(model: _Model, required: bool) -> InputReader | None:
    try:
        return model.read()
    except Exception as error:  # the Hub's client raises many kinds
        if required:
            raise RecipeError(f"{model.key}: encoders cannot be loaded: {error}") from error
        say(f"note: the encoders cannot be reached from here: {(str(error) or type(error).__name__).splitlines()[0]}")
        return None


def selector_of_tables(
    name: str, revision: str | None, tables: tuple[EmbeddingTable, EmbeddingTable]
) -> PointerSelectorConfig:
    """Configuration of the selector inside a stored `EncodingSelector`, which is to learn from tables.

    Raises:
        RecipeError: the model cannot be loaded.
        RecordError: other encoders made the tables.
    """
    try:
        trained = load_selector_encoders(name, "cpu", revision)
    except (ValueError, OSError) as error:
        raise RecipeError(f"model_name_or_path: {error}") from error
    for key, table in zip(TABLES, tables, strict=True):
        try:
            table.check_encoders(trained.fingerprints)
        except RecordError as error:
            raise error.at(key) from error
    return trained.selector.config


# -- the tables -------------------------------------------------------------------------------------------------------


def load_table(script: GroupArguments, name: str) -> EmbeddingTable:
    """The table of embeddings under one of the recipe's keys."""
    path = getattr(script, name)
    if path is None:
        raise RecipeError(f"{name}: policy: selector needs a table of embeddings (python -m rollouts.embeddings)")
    try:
        return EmbeddingTable.load(path)
    except RecordError as error:
        raise error.at(name) from error


def load_query_table(script: GroupArguments) -> EmbeddingTable:
    """Embeddings of all queries; those of `eval_query_table` under `HeldOutId`s."""
    queries = load_table(script, "query_table")
    if script.eval_query_table is None:
        return queries
    held_out = load_table(script, "eval_query_table")
    try:
        held_out.check_same_encoders(queries)
    except RecordError as error:
        raise error.at("eval_query_table") from error
    ids = [*queries.ids, *map(HeldOutId, held_out.ids)]
    return EmbeddingTable(ids, np.concatenate([queries.values, held_out.values]), queries.parts)


def new_selector_config(settings: dict[str, Any], embedding_size: int, seed: int) -> Any:
    """Configuration of a new selector.

    Raises:
        RecipeError: an unknown key or value; lists what is allowed.
    """
    classes = {config.model_type: config for config in (PointerSelectorConfig, GPT2SelectorConfig)}
    settings = {"embedding_size": embedding_size, "seed": seed} | settings
    model_type = settings.pop("model_type", PointerSelectorConfig.model_type)
    if model_type not in classes:
        known = ", ".join((*classes, "encoding_selector"))
        raise RecipeError(f"selector: model_type: expected one of {known}, found {model_type!r}")
    try:
        return classes[model_type](**settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"selector: {error}") from error


# -- the records ------------------------------------------------------------------------------------------------------


def load_selection_records(script: GroupArguments) -> tuple[list[VqaRecord], list[VqaRecord]]:
    """Queries, of all their splits, and examples; read once where they are the same.

    Raises:
        RecordError: names the key; malformed records, or a query whose id another one has.
    """
    read: dict[tuple[str, str], list[VqaRecord]] = {}

    def load(key: str, split: str) -> list[VqaRecord]:
        source = getattr(script, key)
        place = (source, "" if Path(source).is_file() else split)  # the records of a file are of any split
        if place not in read:
            try:
                read[place] = load_examples(source, split)
            except RecordError as error:
                raise error.at(key) from error
        return read[place]

    splits = script.query_splits or ["train"]
    parts = {id(part): part for part in (load("query_data", split) for split in splits)}
    queries = [record for part in parts.values() for record in part]
    repeated = [item for item, count in Counter(record.id for record in queries).items() if count > 1]
    if repeated:
        where = f"query_data: {script.query_data}, splits {', '.join(splits)}"
        raise RecordError([f"{where}: field 'id': duplicate {item!r}" for item in repeated])
    return queries, load("example_data", script.example_split or "train")


# -- any selector -----------------------------------------------------------------------------------------------------


def selector_spec(script: GroupArguments, args: Any, model_args: Any) -> PolicySpec:
    """The selector that a recipe names or describes, with its tables of embeddings, or the records it encodes."""
    name, hub = model_args.model_name_or_path, hub_arguments(args, model_args)
    if (name is None) == (script.selector is None):
        found = "neither" if name is None else "both"
        raise RecipeError(f"policy: selector needs either model_name_or_path or selector, found {found}")
    config = None
    if name is not None:
        try:
            config = AutoConfig.from_pretrained(name, **hub)
        except Exception as error:  # the Hub's client raises many kinds
            raise RecipeError(f"model_name_or_path: '{name}' cannot be loaded: {error}") from error
    model_type = script.selector.get("model_type", "pointer_selector") if config is None else config.model_type
    if reads_records(script, model_type):
        return encoding_selector_spec(script, args, name, config, hub["revision"])
    queries, examples = load_query_table(script), load_table(script, "example_table")
    policy = SelectorPolicy(queries, examples, args.label_smoothing_factor)
    if config is None:
        config = new_selector_config(script.selector, examples.width, args.seed)
    elif model_type == "encoding_selector":
        config = selector_of_tables(name, hub["revision"], (queries, examples))
    width = getattr(config, "embedding_size", None)
    if width != examples.width:
        raise RecipeError(
            f"example_table: {script.example_table} has embeddings of {examples.width} numbers, the selector reads "
            f"{width}"
        )

    def load() -> nn.Module:
        leave_weights_whole(args, "a selector")
        if name is None:
            return AutoModel.from_config(config)
        try:
            return load_selector(name, hub["revision"])
        except ValueError as error:
            raise RecipeError(f"model_name_or_path: {error}") from error

    return PolicySpec(
        policy,
        load,
        by_length=not getattr(config, "stop", False),
        base_model=name or NEW_SELECTOR,
        query_content=_id_of if script.eval_query_table is None else partial(_id_and_embedding, queries),
    )


def _id_of(group: StoredGroup) -> tuple[str, Sequence[Any]]:
    return repr(group.id), ()


def _id_and_embedding(queries: EmbeddingTable, group: StoredGroup) -> tuple[str, Sequence[Any]]:
    """Held-out queries have ids of their own, which may be those of others."""
    plain = group.id.id if isinstance(group.id, HeldOutId) else group.id
    vector = queries.values[queries.rows([group.id])[0]]
    return f"{plain!r} {vector.tobytes().hex()}", ()
