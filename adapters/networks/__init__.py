"""Segmentation networks: the way from an image to its logits, cut into `encode` and `decode`."""
