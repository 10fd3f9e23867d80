"""Uses models offline: makes candidate pools, beams, candidates and completions, and evaluates what was learned.

Uses `rewards`, `filter_agents`, `data` and `models`.
"""
