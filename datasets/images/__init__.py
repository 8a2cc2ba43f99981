"""Image data sets: one file reads one of them, and stream.py makes tasks of its classes."""
