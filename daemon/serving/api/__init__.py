"""`/v1/segment` and what belongs to it."""
