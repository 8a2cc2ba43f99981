"""Run directories, the terminal and TensorBoard; and how a run is begun, resumed, extended and checked.

Only the programs, studies, reports and saved zoos import this: nothing that computes knows where it is written down.
Whatever reads or checks something here raises UserError, whose single line names the file or option that is wrong.

    from records import Run
    Run.load("runs/demo").accuracy_matrix
"""

from records.invocation import configure
from records.run import Run
from records.task_invocation import configure as configure_task

__all__ = ["Run", "configure", "configure_task"]
