"""Policies of eviction: one interface (`policy.py`), one file per policy; `room.py` decides how many frames leave."""
