"""The inference plane: one process that follows the registry's serving ref and answers over HTTP.

It has no control endpoint: which version serves is decided by the registry, and by nothing that a client can send.
"""
