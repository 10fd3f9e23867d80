"""Small data of other tests, for the tests of cases."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "trainers"))  # stored_groups.py, preference_runs.py, factor_runs.py
