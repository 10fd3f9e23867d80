"""kill -9 at seeded moments, half of them after the last checkpoint, with a constant learning rate: every trainer ends
with the weights and the history of an undisturbed run, and a finished run is left as it is."""

import pytest
from kill_recipes import check_kind, recipes, run_and_kill, write_data

KINDS = (*("grpo", "sft", "sft_selector", "rce", "rce_vlm", "offline_grpo", "offline_grpo_vlm", "reward", "factors"),)
QUICK = ("sft_selector", "rce", "offline_grpo", "factors")
"""Those whose runs take a second or two."""
KILLS = 20


@pytest.fixture(scope="module")
def runs(tiny_model, report_data, tmp_path_factory):
    """Folder and recipes."""
    from data.tasks import load_rows
    from filter_agents.registry import described_agents

    folder = tmp_path_factory.mktemp("kills")
    agents = described_agents()
    data = write_data(folder / "data", report_data, load_rows(report_data, "train", agents))
    return folder, recipes(data, tiny_model)


def test_every_trainer_is_killed(runs):
    assert tuple(runs[1]) == KINDS


def test_t01_killed_a_few_times(runs, run_warm):
    folder, known = runs
    found = run_and_kill(folder, {kind: known[kind] for kind in QUICK}, 2, 1, run_warm)
    for kind in QUICK:
        check_kind(found[kind], late=1)


@pytest.mark.kills
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("kind", KINDS)
def test_t01_killed_twenty_times(runs, kind, run_warm, tmp_path):
    folder, known = runs
    (tmp_path / "data").symlink_to(folder / "data")
    check_kind(run_and_kill(tmp_path, {kind: known[kind]}, KILLS, 0, run_warm)[kind], late=KILLS // 2)
