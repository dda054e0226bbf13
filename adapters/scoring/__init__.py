"""Measure how good a network is, with labels and without."""
