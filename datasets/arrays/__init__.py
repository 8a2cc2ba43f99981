"""Arrays of a file as a stream of tasks: `files.py` reads and checks them, `stream.py` makes tasks of their rows,
`scaling.py` puts features and targets on a common scale. Whatever is specific to images is in `images/`.
"""
