"""Factor predictors: which quality factors apply to an image."""
