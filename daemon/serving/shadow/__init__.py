"""A second version that sees live images without answering."""
