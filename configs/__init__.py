"""Settings, presets and class lists: what can be configured, its unit and its default. No behaviour lives here."""
