"""Rollouts by vLLM: what its engine is given, how prompts reach it, and what is checked before it starts."""
