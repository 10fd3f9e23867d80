"""What rows of any task have in common: a prompt of their own, chat messages, images, answers."""
