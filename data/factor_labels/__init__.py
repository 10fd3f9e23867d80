"""From free texts to a fixed set of factors: clusters of sentences that mean the same."""
