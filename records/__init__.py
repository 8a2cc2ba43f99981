"""What is written down of a run: its directory, checkpoints and measurements; the terminal and TensorBoard.

Also how a run is begun, resumed, extended and checked. Only the programs, studies, reports and saved zoos import this:
nothing that computes knows where it is written down.

    from records import Run
    Run.load("runs/demo").accuracy_matrix
"""

from records.invocation import configure
from records.run import Run

__all__ = ["Run", "configure"]
