"""Policies of eviction: one interface (`policy.py`), and the orders; others decide how many frames leave."""
