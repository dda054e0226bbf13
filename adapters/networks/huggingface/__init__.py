"""Ready Hugging Face segmentation models, split into `encode` and `decode`."""
