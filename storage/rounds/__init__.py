"""Round folders: what a round was asked to do, how far it is, and what came out."""
