"""Decoders: from the encoder's maps to logits at a resolution of their own."""
