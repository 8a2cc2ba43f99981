"""Image data sets: their readers, and streams of tasks made of their classes.

The files of each data set are read in a file of its own; stream.py makes tasks of what was read. Nothing here trains.
"""
