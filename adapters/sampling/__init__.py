"""Choose the crops of frames that a round trains on, and their order."""
