"""Rewards of the form of a completion: what it is written in, whatever it says."""
