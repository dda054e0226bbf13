"""What an operator is told about a daemon."""
