"""Checkpoints: versions, the refs that say which of them serve, and the history of every move."""
