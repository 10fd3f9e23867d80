"""What trainers add to TRL's, one change each."""
