"""The control plane over HTTP: API, page, metrics."""
