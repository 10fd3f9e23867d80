"""An example selector that learns from stored groups: candidates are pointers, queries and examples embeddings, or the
texts and images that its own encoders read."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from data.candidates.embedding_table import EmbeddingTable
from data.candidates.examples import SINGLE_IMAGE, record_text
from data.io.images import image_problems, open_image
from data.io.records import RecordError
from data.reports.pool import ItemId
from data.vqa import VqaRecord
from models.selectors.encoder_inputs import InputReader, Inputs
from models.selectors.encoding import EncodingSelector
from models.selectors.load import load_encoding_selector, load_selector
from trainers.groups.data import StoredGroup
from trainers.groups.policies import Batch, GroupLogProbs, Kind
from trainers.setup.checks import check_policy_settings
from trainers.setup.recipes import RecipeError
from trainers.setup.zero_stage import leave_weights_whole

BACKBONE = ("input_proj", "query_proj", "cand_proj")
"""The parts of a selector that `freeze_backbone` leaves as they are."""


class SelectorPolicy:
    """An example selector (models/selectors/pointer.py): a candidate is a pointer, a step the choice of one example.

    A candidate counts by the sum over its steps: its probability is that of the whole sequence.

    Args:
        queries, examples: tables of embeddings by the same encoders.
        label_smoothing: share of the cross-entropy's target that is spread over the pool.

    Raises:
        RecordError: the tables were made by different encoders.
    """

    kind: ClassVar[Kind] = "selector"
    mean_over_steps: ClassVar[bool] = False
    sources = ("query_table", "example_table")
    """The recipe's keys that queries and examples come from, for messages."""
    load_model = staticmethod(load_selector)

    def __init__(self, queries: EmbeddingTable, examples: EmbeddingTable, label_smoothing: float = 0.0):
        queries.check_same_encoders(examples)
        self.queries, self.examples = queries, examples
        self.label_smoothing = label_smoothing

    def check_settings(self, args: Any) -> None:
        check_policy_settings(self.kind, args)
        if args.label_smoothing_factor not in (0, self.label_smoothing):
            found = f"the configuration says {args.label_smoothing_factor}, the policy {self.label_smoothing}"
            raise RecipeError(f"label_smoothing_factor: {found}; leave out one")

    def check_groups(self, groups: Sequence[StoredGroup], name: str, args: Any) -> None:
        """No setting of a trainer forbids any."""

    def compares_lengths(self, model: nn.Module) -> bool:
        """Where the selector decides when to stop."""
        selector = model.selector if isinstance(model, EncodingSelector) else model
        return bool(getattr(selector.config, "stop", False))

    def load(
        self, name: str, args: Any, options: Mapping[str, Any], quantization: Any = None, adapters: Any = None
    ) -> nn.Module:
        if quantization is not None or adapters is not None:
            raise RecipeError("peft_config, quantization_config: a selector is trained as it is; leave them out")
        args.model_init_kwargs = None
        leave_weights_whole(args, "a selector")
        return self.load_model(name, options.get("revision"))

    def set_up(self, model: nn.Module, args: Any) -> None:
        if args.freeze_backbone:
            freeze_backbone(model)

    def prepare(self, group: StoredGroup) -> dict[str, Any]:
        """Row numbers of query and pool, and each pointer as positions in the pool."""
        errors, found = [], {}
        parts = (("query", self.queries, [group.id]), ("pool", self.examples, group.pool))
        for source, (name, table, ids) in zip(self.sources, parts, strict=True):
            try:
                found[name] = table.rows(ids)
            except RecordError as error:
                errors.append(error.at(f"{group.where}: {source}"))
        positions = {item: position for position, item in enumerate(group.pool)}
        outside = [item for one in group.candidates for item in one.pointer if item not in positions]
        problems = [f"{group.where}: field 'pointer': {item!r} is not in the group's pool" for item in outside]
        if errors or problems:
            raise RecordError.joined(errors, problems)
        pointers = [[positions[item] for item in candidate.pointer] for candidate in group.candidates]
        return {"query": int(found["query"][0]), "pool": found["pool"], "pointers": pointers}

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch:
        """Every example of the batch once, and pools as rows of those."""
        unique, places = np.unique(np.concatenate([item["pool"] for item in items]), return_inverse=True)
        pools = torch.from_numpy(places).split([len(item["pool"]) for item in items])
        sizes = [len(item["pointers"]) for item in items]
        steps = max(len(pointer) for item in items for pointer in item["pointers"])
        pointers = torch.full((len(items), max(sizes), steps), -1)
        for row, item in enumerate(items):
            for column, pointer in enumerate(item["pointers"]):
                pointers[row, column, : len(pointer)] = torch.tensor(pointer)
        return {
            "index": torch.tensor([item["index"] for item in items]),
            **self.inputs([item["query"] for item in items], unique),
            "pools": nn.utils.rnn.pad_sequence(pools, batch_first=True, padding_value=-1),
            "pointers": pointers,
        }

    def inputs(self, queries: Sequence[int], examples: Sequence[int]) -> dict[str, Any]:
        """What the model reads of these rows of queries and examples."""
        return {
            "query_embeddings": torch.from_numpy(self.queries.values[queries]),
            "example_embeddings": torch.from_numpy(self.examples.values[examples]),
        }

    def group_log_probs(self, model: nn.Module, batch: Batch) -> GroupLogProbs:
        inputs = {name: value for name, value in batch.items() if name != "index"}
        output = model(**inputs, label_smoothing=self.label_smoothing)
        nothing = _every_parameter(model)
        return GroupLogProbs(output.log_probs + nothing, output.mask, output.cross_entropy + nothing)


def _every_parameter(model: nn.Module) -> torch.Tensor | float:
    """0, with a gradient of 0 for every trainable parameter.

    A batch of one-example pointers does not use what remembers earlier choices. DDP and ZeRO wait for the gradient of
    every parameter, on every process.
    """
    if not torch.is_grad_enabled():
        return 0.0
    return sum(0.0 * parameter.flatten()[:1].sum() for parameter in model.parameters() if parameter.requires_grad)


def freeze_backbone(model: nn.Module) -> None:
    """Leaves the projections of a selector, and the adapters of its encoders, as they are.

    Raises:
        RecipeError: it has none, or nothing else to train.
    """
    for name, parameter in model.named_parameters():
        if name.removeprefix("selector.").split(".")[0] in BACKBONE or ".lora_" in name:
            parameter.requires_grad_(False)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    if all(trainable) or not any(trainable):
        rest = "no such part" if all(trainable) else "nothing else"
        raise RecipeError(
            f"freeze_backbone: {type(model).__name__} has {rest}; expected {', '.join(BACKBONE)} and more"
        )


# -- with encoders of its own -----------------------------------------------------------------------------------------


class RecordTable:
    """VQA records by id, in the place of a table of their embeddings.

    Args:
        records: each with an id of its own.
        text: what of them is read, "question" or "question_answer".
        images: whether their images are read too.
    """

    def __init__(self, records: Sequence[VqaRecord], text: str = "question", images: bool = True):
        self.records = list(records)
        self.text = text
        self.images = images
        self._row = {record.id: row for row, record in enumerate(self.records)}
        self._checked: set[int] = set()

    def rows(self, ids: Sequence[ItemId]) -> np.ndarray:
        """Row numbers (int64) of these ids, whose images can be opened; each is tried once, on the main process.

        Raises:
            RecordError: ids that no record has; a record without exactly one image that can be opened.
        """
        unknown = [item for item in dict.fromkeys(ids) if item not in self._row]
        if unknown:
            raise RecordError([f"no record has the id {item!r}" for item in unknown])
        rows = [self._row[item] for item in ids]
        if self.images and PartialState().is_main_process:
            self._check_images([row for row in rows if row not in self._checked])
        return np.array(rows, dtype=np.int64)

    def record(self, item: ItemId) -> VqaRecord | None:
        """The record with this id."""
        row = self._row.get(item)
        return None if row is None else self.records[row]

    def _check_images(self, rows: Sequence[int]) -> None:
        self._checked.update(rows)
        found = [(f"record {self.records[row].id!r}", self.records[row].images) for row in rows]
        problems = [
            f"{where}: field 'images': {SINGLE_IMAGE}, found {len(images)}"
            for where, images in found
            if len(images) != 1
        ]
        single = [(where, images[0]) for where, images in found if len(images) == 1]
        unread = image_problems([image for _, image in single])
        problems += [f"{where}: field 'images': {one}" for (where, _), one in zip(single, unread, strict=True) if one]
        if problems:  # without a count: these are the images of one group
            raise RecordError(problems)

    def inputs(self, rows: Sequence[int], reader: InputReader) -> Inputs:
        """What the encoders read of these rows."""
        records = [self.records[row] for row in rows]
        inputs: Inputs = {}
        if reader.image_processor is not None:
            inputs |= reader.read_images([open_image(record.images[0]) for record in records])
        if reader.tokenizer is not None:
            inputs |= reader.read_texts([record_text(record, self.text) for record in records])
        return inputs


class EncodingPolicy(SelectorPolicy):
    """`SelectorPolicy` of an `EncodingSelector` (models/selectors/encoding.py): it is given texts and images in place
    of embeddings, each example of a batch once.

    Args:
        queries, examples: records by id.
        reader: tokenizer and image processor of the encoders; `None` to look groups up only.
        label_smoothing: share of the cross-entropy's target that is spread over the pool.
    """

    sources = ("query_data", "example_data")
    load_model = staticmethod(load_encoding_selector)

    def __init__(
        self, queries: RecordTable, examples: RecordTable, reader: InputReader | None, label_smoothing: float = 0.0
    ):
        self.queries, self.examples = queries, examples
        self.reader = reader
        self.label_smoothing = label_smoothing

    def inputs(self, queries: Sequence[int], examples: Sequence[int]) -> dict[str, Inputs]:
        return {
            "query_inputs": self.queries.inputs(queries, self.reader),
            "example_inputs": self.examples.inputs(examples, self.reader),
        }
