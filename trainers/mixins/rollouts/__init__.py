"""How completions are rolled out for GRPO: by which loop, in which order, at which temperature, in which batches."""
