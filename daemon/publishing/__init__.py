"""Mirrors of the serving version: which (`publisher.py`), their progress, and the exporting child."""
