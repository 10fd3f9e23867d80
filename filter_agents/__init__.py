"""What a selected agent does: keep some ids of a data set, given the prompt that a model wrote for it.

Uses `data` and `models`. Prompts are data: they are read by the small grammar in `grammar.py`, and never executed,
opened as a path or compiled as a regular expression.
"""
