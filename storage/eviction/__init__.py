"""Policies of eviction: one interface (`policy.py`), one file per policy; others decide how many frames leave."""
