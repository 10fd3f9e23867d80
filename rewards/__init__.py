"""Scores for completions, one file a kind of reward. Uses `filter_agents`, `data` and `models`."""
