"""`mfmd demo`, and a real daemon driven from outside for benchmarks and end-to-end tests."""
