"""The inference plane: one process that follows the registry's serving ref and answers over HTTP.

It has no control endpoint: the registry decides which version serves, never a client.
"""
