"""Read and write networks: versions of the registry, imported models, exports."""
