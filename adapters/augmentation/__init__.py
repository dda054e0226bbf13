"""What is done to a batch of crops before the network sees it."""
