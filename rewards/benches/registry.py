"""The benches by name, and which of them a file is of."""

from itertools import islice
from pathlib import Path

from data.io.records import RecordError
from rewards.benches.base import Bench, Read
from rewards.benches.mm_rlhf_rewardbench import MM_RLHF_REWARDBENCH
from rewards.benches.mmrb2 import MMRB2
from rewards.benches.mr2bench import MR2BENCH
from rewards.benches.multimodal_rewardbench import MULTIMODAL_REWARDBENCH
from rewards.benches.omni_rewardbench import OMNI_REWARDBENCH
from rewards.benches.vl_rewardbench import VL_REWARDBENCH

_ALL = (MULTIMODAL_REWARDBENCH, MM_RLHF_REWARDBENCH, MR2BENCH, MMRB2, OMNI_REWARDBENCH, VL_REWARDBENCH)
BENCHES = {bench.name: bench for bench in _ALL}
"""The last one takes every row that none before it knows."""


def _first_fields(read: Read, source: str | Path, split: str) -> set[str]:
    """Names of the fields of the first row, none if it cannot be read so."""
    try:
        rows = [row for _, row in islice(read(source, split), 1)]
    except RecordError:
        return set()
    return set(rows[0]) if rows and isinstance(rows[0], dict) else set()


def find_bench(source: str | Path, split: str) -> Bench:
    """The bench whose fields the first row of a source has (`data.io.records.read_rows`)."""
    *told, otherwise = BENCHES.values()
    fields = {read: _first_fields(read, source, split) for read in dict.fromkeys(bench.read for bench in told)}
    return next((bench for bench in told if bench.fields <= fields[bench.read]), otherwise)
