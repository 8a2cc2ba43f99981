"""How one network is trained: batches, gradient steps, optimizers, the training loop, and prediction.

Nothing here knows of streams, episodes or run directories: methods/ decides which tasks a network is trained on.
"""

from utils.compiler import do_without_compiler

do_without_compiler()
