"""Scoring many rows: what rewards read, what happens when one fails, summaries with intervals."""
