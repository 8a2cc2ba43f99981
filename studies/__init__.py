"""Many runs: the store that holds them, the processes that make them, tables and statistics over seeds.

What one run does is decided elsewhere.
"""
