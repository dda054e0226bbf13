"""Choose the version that answers: slots, swaps, and the follower of the serving ref."""
