"""Example selectors: small models that choose which examples to show."""
