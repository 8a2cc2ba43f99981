"""Run directories, the terminal and TensorBoard; and how a run is begun, resumed, extended and checked.

Only the programs, studies, reports and saved zoos import this: nothing that computes knows where it is written down.
Whatever reads or checks something here raises UserError, whose single line names the file or option that is wrong.

    from records import Run
    Run.load("runs/demo").accuracy_matrix
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from records.invocation import configure
    from records.run import Run
    from records.task_invocation import configure as configure_task

__all__ = ["Run", "configure", "configure_task"]
_PLACES = {"Run": ("run", "Run"), "configure": ("invocation", "configure"),
           "configure_task": ("task_invocation", "configure")}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load torch, which takes seconds, only for what needs it: whoever looks at locks and progress does not."""
    if name not in _PLACES:
        raise AttributeError(f"module 'records' has no attribute {name!r}")
    module, own = _PLACES[name]
    return getattr(importlib.import_module(f"records.{module}"), own)
