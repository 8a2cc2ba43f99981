"""Read YAML files written by people; anything unreadable is refused in one line."""

import copy
import re
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import yaml

from utils.errors import UserError, expanded, missing_file
from utils.files import NUMBER

_LARGEST_YAML = 16 << 20  # bytes
_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that also reads 1e-5 as a number and refuses duplicate keys and halves of characters."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        value.encode()  # UnicodeEncodeError, a ValueError, for "\ud800"
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[str]()
        for key, value in ((key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
            if key.value in ("tasks", "data.tasks"):  # names of classes keep their written text
                _keep_text(value, set())
        return super().construct_mapping(node, deep)


def _keep_text(node: yaml.Node, seen: set[yaml.Node]) -> None:
    """Make the entries of lists texts, but for 1 and -20, whose number has the same text: YAML reads 010 as 8."""
    if isinstance(node, yaml.ScalarNode) or node in seen:  # aliases can be nested without end
        return
    seen.add(node)
    listed = isinstance(node, yaml.SequenceNode)
    for entry in node.value if listed else [value for _, value in node.value]:
        if listed and isinstance(entry, yaml.ScalarNode) and entry.value and not _WHOLE.fullmatch(entry.value):
            entry.tag = "tag:yaml.org,2002:str"
        _keep_text(entry, seen)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", *NUMBER)


def load_yaml(path: str) -> dict[str, Any]:
    """The keys and values of a YAML file; UserError names the file and, if known, the line."""
    try:
        with open(expanded(path), encoding="utf-8") as file:
            content = file.read(_LARGEST_YAML + 1)
        if len(content) > _LARGEST_YAML:
            raise UserError(f"{path} is larger than {_LARGEST_YAML >> 20} MiB, which no configuration is")
    except FileNotFoundError:
        raise UserError(missing_file(path)) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UserError(f"{path} cannot be read: {error}") from None
    return copy.deepcopy(_parsed(path, content))


@lru_cache(1024)
def _parsed(path: str, text: str) -> dict[str, Any]:
    """A large grid reads the same few files and values again for each of its cells."""
    return parse_yaml(path, text)


def parse_yaml(path: str, text: str, loader: Any = _Loader) -> dict[str, Any]:
    """The keys and values of a YAML text, by a safe loader; UserError names the file and, if known, the line."""
    try:
        content = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', None) or error}") from None
    # PyYAML's dates and numbers raise whatever Python raises, deep nesting a RecursionError.
    except (ValueError, AttributeError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: a value cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, such as 'dataset: cifar100'")
    return content


def parse_value(text: str, key: str = "value") -> Any:
    """Parse one YAML value, such as 0.1, true, [1, 2] or conv, of a key; UserError if it is not one."""
    return copy.deepcopy(_parsed("the value", f"{key}: {text}\n"))[key]
