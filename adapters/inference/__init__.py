"""How a version computes while it serves: weights copied in chunks, number formats, compilation."""
