"""Learning from labelled images: the images with their labels, and the predictor that learns."""
