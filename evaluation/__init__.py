"""What is asked of networks: accuracy over a stream with and without the task, and the metrics made of it.

Nothing here trains or writes files.
"""
