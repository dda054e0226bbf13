"""Who leaves the buffer first: one interface, one file a policy. How many: `storage/buffer/eviction_plan.py`."""
