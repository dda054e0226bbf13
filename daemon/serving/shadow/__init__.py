"""A second version that runs on live images without answering."""
