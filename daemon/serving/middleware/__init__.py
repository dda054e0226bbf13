"""ASGI middleware of the inference plane."""
