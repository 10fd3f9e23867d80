"""Public benches of reward models: how their rows are read, and their figures by their published rules."""
