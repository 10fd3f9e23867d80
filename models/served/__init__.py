"""A model behind an address: asked with bounded concurrency, again after a failure, and never twice for the same."""
