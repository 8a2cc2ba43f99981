"""The tests. Toy streams are in toys.py."""
