"""Reward models: a vision-language model that gives a response one score."""
