"""Rollouts by transformers' models: a prompt's keys and values once, rows that end leave, exact drafts."""
