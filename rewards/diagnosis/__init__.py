"""What a reward model or judge decides by: the image, the text, the order of the responses, or their length."""
