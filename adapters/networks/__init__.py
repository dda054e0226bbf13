"""Segmentation networks: what is between an image and its logits, cut into `encode` and `decode`."""
