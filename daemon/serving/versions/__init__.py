"""Which version answers: slots, swaps, and the follower of the serving ref."""
