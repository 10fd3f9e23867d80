"""Families that models/families/ does not know: they train and are used on the plain path, for one stated reason."""

import pytest
from family_cells import METHODS, Cell, check_learned
from unknown_families import UNKNOWN, write_unknown

REASON = "models of type {!r} are not among those whose prompts can be shared"


@pytest.fixture
def unknown(run_warm, family_data, tmp_path):
    """Function: model type -> runs of a tiny model of it."""

    def of(family: str) -> Cell:
        return Cell(run_warm, write_unknown(family, tmp_path / family), family_data, tmp_path / "runs")

    return of


@pytest.mark.families
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", UNKNOWN)
def test_an_unknown_family_trains_and_is_used(unknown, family, method):
    """Two steps with 0, 1 and 2 images."""
    runs = unknown(family)
    trained = runs.train(METHODS[method], "full")
    check_learned("full", trained, runs.model)
    runs.use(METHODS[method], trained)
    if METHODS[method].rewards:
        further = Cell(runs.start, trained, runs.data, runs.folder / "further")
        runs.use(METHODS[method], further.train(METHODS[method], "full"))
    assert set(runs.reasons) <= {REASON.format(family)}
    assert runs.reasons or method in ("SFT", "reward model")
