"""Preference accuracy of scores, and whether the scores are calibrated."""
