"""Teacher, pseudo-labels and other targets of a recipe."""
