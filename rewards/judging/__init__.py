"""Judges: models that are asked in words which response is better, or how good one is."""
