"""Durable data: frame buffer, labelled source set, registry, round folders. No torch, HTTP or policy."""
