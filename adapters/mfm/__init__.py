"""Masked Feature Modeling: the training-only branch (Zhou et al., arXiv 2509.13801)."""
