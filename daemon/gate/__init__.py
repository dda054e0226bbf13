"""Decide whether a candidate may serve: vetoes, votes, the shadow, and the promotion that moves the refs."""
