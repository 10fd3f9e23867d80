"""Where the completions of a diagnosis come from: each backend in a file of its own."""
