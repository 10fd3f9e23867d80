"""Forwards of new tokens: as they come, by the parts of a language model, or recorded."""
