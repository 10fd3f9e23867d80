"""Where modules come from while the command runs: the packages first, the current folder last.

Imports nothing of ours: a user's `data.py` or `models/` would be found first as long as this has not run.
"""

import sys
from pathlib import Path

OURS = Path(__file__).parents[1]


def put_current_folder_last() -> None:
    """Moves the current folder to the end of the path, unless it is the one that our packages are in.

    That one comes before it, because packages that are installed in place (`pip install -e`) are not on the path at
    all, and would be looked for last.
    """
    here = Path.cwd()
    if here == OURS:
        return
    sys.path[:] = [place for place in sys.path if Path(place or ".").absolute() != here]
    sys.path += [place for place in (str(OURS), str(here)) if place not in sys.path]
