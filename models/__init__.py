"""Policies and scorers. Imports none of the other rooms."""
