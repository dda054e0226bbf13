"""Ready Hugging Face segmentation models, split into `encode` and `decode`: one file a family, `models.py` for all."""
