"""The most similar rows of a large table, and the embeddings that are compared."""
