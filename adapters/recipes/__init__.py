"""Self-training recipes that Masked Feature Modeling builds on."""
