"""Everything that knows a tensor: networks, MFM, self-training, scores, the round. Importing this imports no torch."""
