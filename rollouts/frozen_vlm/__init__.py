"""A frozen vision-language model that answers questions with shown examples."""
