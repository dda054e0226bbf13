"""Traces by OpenTelemetry, if the environment asks for them."""
