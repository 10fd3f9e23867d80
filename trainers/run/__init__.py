"""One run from its start to its end: what it started from, whether it goes on, and what it says."""
