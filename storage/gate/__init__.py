"""What the gate remembers between rounds: known conditions, and comparisons of versions on frames."""
