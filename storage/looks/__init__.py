"""Label maps of single frames that the page asks for: a cache that holds nothing of value."""
