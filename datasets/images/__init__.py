"""Image data sets: a reader for each, and streams of tasks made of their classes.

One file reads one data set; stream.py makes tasks from its images. Nothing here trains.
"""
