"""Which crops of which frames a round trains on, and in which order."""
