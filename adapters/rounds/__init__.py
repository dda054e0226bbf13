"""One round of self-training, and the source training before the first: loop, budgets, state, result."""
