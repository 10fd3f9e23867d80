"""Tokens that are looked up: what may come next, from what was read before."""
