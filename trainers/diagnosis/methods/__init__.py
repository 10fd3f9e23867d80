"""The checks of each method: which of them apply, and how what they look at is made."""
