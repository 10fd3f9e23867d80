"""One prompt, many continuations: the prompt goes through the model once, exactly."""
