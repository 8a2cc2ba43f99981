"""Continual-learning methods: the zoo and what it is compared with.

To add a method: one file with a class (see Method in base.py) and one line in METHODS.
"""

from __future__ import annotations

from collections.abc import Iterable

from methods.base import Method, Setting
from methods.isolated import Isolated
from methods.zoo import Zoo
from utils.errors import UserError, unknown

METHODS: dict[str, type[Method]] = {"zoo": Zoo, "isolated": Isolated}


METHOD_OPTIONS = frozenset().union(*(method.options for method in METHODS.values()))


def check_method(name: str, given: Iterable[str]) -> None:
    """Check a method's name and that it reads the method options that were given.

    Raises:
        UserError: there is no such method, or an option belongs to another one.
    """
    if name not in METHODS:
        raise UserError(f"--method: {unknown('method', name, METHODS)}")
    for option in given:
        if option in METHOD_OPTIONS and option not in METHODS[name].options:
            users = [other for other in METHODS if option in METHODS[other].options]
            raise UserError(f"--{option} is for --method {' or '.join(users)}; {name} does not use it")


def build_method(setting: Setting) -> Method:
    """The method that the command line names."""
    return METHODS[setting.config.method](setting)
