"""Choosing examples to show, and how well a model answers with them."""
