"""`mfmd export`: write a version in formats of other programs; one file per format family, `export.py` for all."""
