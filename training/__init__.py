"""How one network is trained: batches, gradient steps, optimizers, the loop, and what a trained network answers.

Which tasks follow each other is decided in methods/; nothing here knows of streams, episodes or run directories.
"""

from utils.compiler import do_without_compiler

do_without_compiler()
