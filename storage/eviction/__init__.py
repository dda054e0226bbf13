"""Which frames leave the buffer: one interface (`policy.py`), one file for each policy; how many leave (`room.py`)."""
