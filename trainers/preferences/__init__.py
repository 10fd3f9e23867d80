"""Learning from preferences: their records and batches, the reward model and its adapters, what is logged."""
