"""Self-training recipes that Masked Feature Modeling sits on."""
