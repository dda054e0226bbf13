"""The settings as text: template, reference page, schema."""
