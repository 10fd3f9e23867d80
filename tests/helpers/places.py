"""Where things lie: the repository, its tests' helpers, and the oracles."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
ORACLES = ROOT / "tests" / "oracles"
