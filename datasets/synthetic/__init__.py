"""Tasks whose examples are generated: algorithms on short sequences. Nothing is read from the disk."""
