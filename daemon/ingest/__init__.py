"""From a file that no longer changes to a committed frame or a recorded refusal."""
