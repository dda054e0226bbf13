"""Augment a batch of crops before the network sees it."""
