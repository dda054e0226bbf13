"""Networks from and to files: versions of the registry, imported models, exports."""
