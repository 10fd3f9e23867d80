"""A reward for runs of models that write gibberish."""


def mean_token(completions, completion_ids, **columns) -> list[float]:
    """A reward with contrast in every group, whatever is written."""
    return [sum(ids) / (1 + len(ids)) / 400 for ids in completion_ids]
