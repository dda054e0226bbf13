"""The settings as text: what `mfmd init` writes, and the reference page."""
