"""Keep parts and processes alive; this folder knows no image."""
