"""Mirrors of what serves, kept by the daemon: which (`publisher.py`), how far each is, and the exporting child."""
