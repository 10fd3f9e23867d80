"""What example selection reads beside its groups: pools of candidates, tables of embeddings, examples."""
