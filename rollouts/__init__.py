"""Uses models offline: makes candidate pools, beams, candidates and completions, and evaluates what was learned.

Uses `rewards`, `filter_agents`, `data` and `models`.
"""

import data.cli.interrupts  # noqa: F401  Ctrl-C during the imports that follow is no traceback
