"""Notifications: what happened (`events.py`), and telling webhooks about it (`notifier.py`)."""
