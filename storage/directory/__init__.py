"""The state directory as a whole: its format, its upgrades, backups of it."""
