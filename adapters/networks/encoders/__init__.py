"""Encoders: backbones of transformers, wrapped to return the tuple of maps that a decoder reads."""
