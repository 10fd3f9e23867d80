"""What the tests of all families share: small data, and the runs of a cell of the table."""

import pytest
from family_cells import Cell
from family_data import write_data


@pytest.fixture(scope="session")
def family_data(tmp_path_factory):
    """Folder of rows of every kind with 0, 1 and 2 images."""
    return write_data(tmp_path_factory.mktemp("family_data"))


@pytest.fixture
def cell(run_warm, tiny_family, family_data, tmp_path):
    """Function: family -> its runs."""

    def of(family: str) -> Cell:
        return Cell(run_warm, tiny_family(family), family_data, tmp_path / "runs")

    return of
