"""Many runs: the cells of a table, and the queue that works them off."""
