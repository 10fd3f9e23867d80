"""Whether an update sees what its rollout saw: checks, each with the causes that it tells apart."""
