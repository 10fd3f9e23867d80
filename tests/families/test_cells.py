"""Every family with every trainer: `make test-families`. What happens is written down for docs/families.md."""

import pytest
from family_cells import RUNS, outcome_of
from family_table import FOUND, STORED, note, read_record

from models.tiny import FAMILIES

pytestmark = [pytest.mark.families, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("column", RUNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell(cell, family, column):
    """Trains two steps each way with 0, 1 and 2 images, saves, reloads and uses it; or is refused in one line."""
    outcome = outcome_of(cell(family), column)
    note(FOUND, family, column, outcome)
    stored = read_record(STORED).get(family, {}).get(column, {})
    assert {"result": outcome.result, "reason": outcome.reason}.items() <= stored.items(), "make families-table"
