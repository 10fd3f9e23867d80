"""Scores for completions, one file a kind of reward. Uses `filter_agents`, `data` and `models`."""

import data.cli.interrupts  # noqa: F401  Ctrl-C during the imports that follow is no traceback
