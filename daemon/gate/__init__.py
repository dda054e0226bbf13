"""May a candidate serve? Vetoes, votes, the shadow, and the promotion that moves the refs."""
