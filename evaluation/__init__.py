"""Measuring networks: accuracy over a stream, with and without the task, and continual-learning metrics.

Nothing here trains or writes files.
"""
