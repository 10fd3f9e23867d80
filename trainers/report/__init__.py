"""What a run leaves for people: report, model card, samples, figures."""
