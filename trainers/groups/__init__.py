"""Learning from stored groups: their data, the policies that learn from them, the run."""
