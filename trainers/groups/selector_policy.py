"""An example selector whose encoders learn too: candidates are pointers, queries and examples texts and images."""

from collections.abc import Sequence

import numpy as np
from accelerate import PartialState

from data.candidates.examples import SINGLE_IMAGE, record_text
from data.io.images import image_problems, open_image
from data.io.records import RecordError
from data.reports.pool import ItemId
from data.vqa import VqaRecord
from models.selectors.encoder_inputs import InputReader, Inputs
from trainers.groups.policies import SelectorPolicy


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
