"""`mfmd export`: a version as others can use it; one file a format family, `export.py` for all."""
