"""Computation of a version while it serves: weights copied in chunks, number formats, compilation."""
