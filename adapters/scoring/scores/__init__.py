"""Label-free and label-based scores of a network, one idea a file. Importing this package does not import torch."""
