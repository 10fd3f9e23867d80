"""Where things lie: the repository, its tests' helpers, and the oracles."""

from pathlib import Path

HELPERS = Path(__file__).parent
WORKERS, KILLS = HELPERS / "workers", HELPERS / "kills"
HELPER_FOLDERS = (HELPERS, HELPERS / "models", HELPERS / "runs", HELPERS / "families")
"""What the programs in `WORKERS` and `KILLS` import from, beside their own folder."""
ROOT = HELPERS.parents[1]
ORACLES = ROOT / "tests" / "oracles"
