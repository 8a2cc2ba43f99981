"""torch's compiler is not used here, but torch's optimizers load it, which takes half a second to two."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"


class _StandIn(ModuleType):
    """What optimizers call of the compiler: both only matter to code that is compiled. All else loads the real one."""

    @staticmethod
    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        return function

    @staticmethod
    def graph_break(*_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # inspect looks at all modules; a submodule needs the path
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        torch._dynamo = importlib.import_module(_NAME)
        return getattr(torch._dynamo, name)


def do_without_compiler() -> None:
    """Put a stand-in where torch's optimizers look for the compiler, unless it is loaded already."""
    if _NAME not in sys.modules:
        torch._dynamo = sys.modules[_NAME] = _StandIn(_NAME)
