"""Many runs: the grid that plans them, the processes that make them, tables and statistics over seeds."""
