"""Round folders: the request of a round, its progress, and its results."""
