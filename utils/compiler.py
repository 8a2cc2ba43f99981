"""Avoid loading torch's compiler: it is not used here, but torch's optimizers import it (half a second to two)."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"


class _StandIn(ModuleType):
    """The two functions that optimizers call, which do nothing in uncompiled code; anything else loads the compiler."""

    def disable(self, function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        return function

    def graph_break(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # inspect reads all modules; a submodule needs __path__
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        torch._dynamo = importlib.import_module(_NAME)
        return getattr(torch._dynamo, name)


def do_without_compiler() -> None:
    """Put a stand-in where torch's optimizers look for the compiler, unless it is loaded already."""
    if _NAME not in sys.modules:
        torch._dynamo = sys.modules[_NAME] = _StandIn(_NAME)
