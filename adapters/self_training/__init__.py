"""Teacher, pseudo-labels and what else a recipe learns from."""
