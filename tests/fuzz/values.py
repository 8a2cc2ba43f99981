"""Odd values, and trees, bytes and texts in which something is changed."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import yaml

from tests.test_bad_input import (
    HOSTILE,
    HOSTILE_TEXT,
    POINTERS,
)

HUGE = [0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 16**5000]
REAL = [0.5, -0.0, 1e-320, 1e300, 1e308, float("inf"), float("-inf"), float("nan"), 1.5, 1e19]
TEXTS = [
    "", " ", "0", "1", "-1", "nan", "inf", "1e400", "null", "true", "../x", "/proc/self/mem", "/dev/null", "~", "a/b",
    ".", "..", "a\0b", "a\nb", "a\r\x85\u2028b", "\x1b[31mred", "é", "日本語", "\u202eabc", "\U0001f600", "e\u0301",
    "\ufeff",
    "\ufffe", "x" * 300, "y" * 5000, "%s%n", "{0}", "$(touch canary)", "`touch canary`", "; touch canary", "٣",
    "timm/resnet18", "timm/", "timm/x", "cuda", "mps", "cpu:1", "cuda:99999999999999999999", "conv", "zoo", "run",
    "d.yaml", "h.yaml", ".lock", "manifest.json", "--epochs", "١٢", "1_000", "0x10", "1:30", "2020-01-01",
]  # fmt: skip
SURROGATES = ["\ud800", "a\udcff", "\udc80.yaml"]


def nested(depth: int, around: Callable[[Any], Any], core: Any = 0) -> Any:
    for _ in range(depth):
        core = around(core)
    return core


def odd_value(rng: random.Random) -> Any:
    """Plain values of every type."""
    pick = rng.randrange(9)
    if pick < 2:
        return rng.choice(HUGE)
    if pick == 2:
        return rng.choice(REAL)
    if pick < 5:
        return rng.choice(TEXTS + SURROGATES)
    if pick == 5:
        return rng.choice([None, True, False, [], {}, [[]], {"a": 1}, [None], {"": ""}, [{}], [[], []]])
    if pick == 6:
        return nested(rng.choice([5, 40, 200]), rng.choice([lambda x: [x], lambda x: {"a": x}]))
    if pick == 7:
        return [rng.randrange(10) for _ in range(rng.choice([1, 3, 1000]))]
    return rng.randrange(-5, 300)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all nodes of a tree of dictionaries and lists."""
    found = [path]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, value in pairs:
        found += places(value, (*path, key))
    return found


def changed(tree: Any, rng: random.Random, value: Callable[[random.Random], Any] = odd_value) -> tuple[Any, str]:
    """A copy in which one node is another one, is missing, is there twice, or has another key; and where."""
    paths = places(tree)
    path = rng.choice(paths)
    how = rng.choice(["replace"] * 5 + ["remove", "rename", "double", "wrap", "text", "swap"])
    if not path:
        how = rng.choice(["replace", "wrap"])
    old = tree
    for key in path:
        old = old[key]
    new = {"wrap": [old], "text": shown(old), "double": old}.get(how)
    if how in ("replace", "rename"):
        new = value(rng) if how == "replace" else rng.choice(TEXTS)
    if how == "swap":
        new = tree
        for key in rng.choice(paths):
            new = new[key]
    return _put(tree, path, how, new), f"{how} {'/'.join(map(str, path))}"[:200] + f" {shown(new)}" * (how != "remove")


def shown(value: Any) -> str:
    """For people."""
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # a number of too many digits
        return type(value).__name__


def _put(tree: Any, path: tuple, how: str, new: Any) -> Any:
    if not path:
        return new
    here, *rest = path
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    made = []
    for key, old in items:
        if key != here or type(key) is not type(here):
            made.append((key, old))
        elif rest:
            made.append((key, _put(old, tuple(rest), how, new)))
        elif how == "rename":
            made.append((new, old))
        elif how == "double":
            made += [(key, old), (f"{key}2", old)]
        elif how != "remove":
            made.append((key, new))
    return dict(made) if isinstance(tree, dict) else type(tree)(value for _, value in made)


OTHER_FILES = [
    b"", b"\0", b"<html><body>404 Not Found</body></html>", b"PK\x03\x04" + bytes(60), b"\x7fELF" + bytes(200),
    b"\x1f\x8b\x08" + bytes(20), HOSTILE, HOSTILE_TEXT, POINTERS, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    b"(canary) (w) file closefile showpage\n%%EOF\n", b"\xff\xfe" + "a: 1".encode("utf-16-le"), b"{}", b"[]", b"null",
    b"\x93NUMPY\x01\x00", b"\x89HDF\r\n\x1a\n", b"version https://git-lfs.github.com/spec/v1\n",
]  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bits flipped, cut, doubled, overwritten."""
    size = len(content)
    at, length = rng.randrange(size + 1), rng.choice([1, 2, 4, 8, 64, 1024])
    how = rng.choice(
        ["flip", "flip", "flip", "head", "truncate", "cut", "insert", "number", "number", "double", "other"]
    )
    data = bytearray(content)
    if how in ("flip", "head"):
        for _ in range(rng.choice([1, 1, 2, 8])):
            if size:
                data[rng.randrange(min(size, 64) if how == "head" else size)] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        del data[at:]
    elif how == "cut":
        del data[at : at + length]
    elif how == "insert":
        data[at:at] = rng.choice([bytes(length), rng.randbytes(length), b"\xff" * length])
    elif how == "number":
        at = rng.choice([at, rng.randrange(min(size, 32) + 1)])
        number = rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40])
        width = rng.choice([1, 2, 4, 8])
        data[at : at + width] = (number % 256**width).to_bytes(width, rng.choice(["big", "little"]))
    elif how == "double":
        data += rng.choice([content, content[at:], rng.randbytes(length)])
    else:
        data = bytearray(rng.choice(OTHER_FILES))
    return bytes(data), f"{how} at {at} of {size}"


YAML_PIECES = [
    "!!python/object/apply:os.system [touch canary]", "!!python/name:os.system", "!!python/object/new:type [z]",
    "!!binary aGVsbG8=", "!!set {0, 1}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp 2020-01-01", "!!float 0x1",
    "!!int 1.5", "!!null x", "!!bool maybe", "!!map []", "!!seq {}", "!!str 1", "!!merge x", "!x y", "!<tag:x> 1",
    "{<<: {a: 1}}", "{<<: [1, 2]}", "{[1]: 2}", "{{a: 1}: 2}", "{? [0] : 1}", "&a [*a]", "*a", "&a 1", "2020-01-01",
    "2020-01-01 25:61:61", "1e400", "-1e400", ".nan", ".inf", "-.inf", "0x" + "f" * 5000, "0b" + "1" * 40000,
    "1" * 5000, "9:" * 2000 + "9", "1_0", "0o17", "017", "08", "~", "yes", "off", "=", "<<", "'", '"', '"\\uD800"',
    '"\\x00"', '"\\U0010FFFF"', '"\\UFFFFFFFF"', "[" * 30 + "]" * 30, "[" * 5000, "{a: " * 40 + "1" + "}" * 40,
    "- " * 3000 + "1", "? " * 3000 + "1", "|\n  text", ">-\n  text", "@", "`", "%YAML 9.9", "---", "...", "\t", "#",
    "\ufeff", "\x07", "\x00", "\x85", "\u2028", "日本", "\U0001f600", "a: b: c", "[,]", "{,}", "[[0, 1], [0, 1]]",
]  # fmt: skip


def mistyped(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Words of a text exchanged for others, lines moved, another encoding."""
    text = content.decode(errors="replace")
    how = rng.choice(["word"] * 6 + ["line", "insert", "insert", "encoding", "damage", "damage"])
    if how == "word":
        words = list(re.finditer(r"[\w.\"'-]+", text)) or [*re.finditer("$", text)]
        word = rng.choice(words)
        value = odd_value(rng)
        new = rng.choice(
            [rng.choice(YAML_PIECES), json.dumps(value) if depth(value) < 100 and value != HUGE[-1] else "[" * 500]
        )
        text = text[: word.start()] + new + text[word.end() :]  # type: ignore[union-attr]
        told = f"{word[0]!r} -> {new!r:.60}"  # type: ignore[index]
    elif how == "line":
        lines = text.splitlines(keepends=True)
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        move = rng.choice(["swap", "remove", "double", "indent"])
        if move == "swap":
            lines[a], lines[b] = lines[b], lines[a]
        elif move == "remove":
            del lines[a]
        elif move == "double":
            lines.insert(a, lines[b])
        else:
            lines[a] = rng.choice(["  ", "\t", "- ", "    "]) + lines[a]
        text, told = "".join(lines), f"{move} lines {a}, {b}"
    elif how == "insert":
        at, piece = rng.randrange(len(text) + 1), rng.choice(YAML_PIECES)
        text, told = text[:at] + piece + text[at:], f"{piece!r:.60} at {at}"
    elif how == "encoding":
        codec = rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"])
        return text.encode(codec), codec
    else:
        return damaged(content, rng)
    return text.encode("utf-8", "surrogatepass"), told


def depth(tree: Any) -> int:
    level, here = 0, [tree]
    while here := [child for node in here if isinstance(node, (list, dict))
                   for child in (node.values() if isinstance(node, dict) else node)]:  # fmt: skip
        level += 1
    return level


def affordable(content: bytes) -> bytes:
    """Images of a size that is allowed, but would keep a network busy for minutes, become small."""
    return re.sub(rb"(image_size\W{1,8})([0-9]{3,4})\b", lambda match: match[1] + match[2][:2], content)


def text_or_tree(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A YAML file with a word or a value changed."""
    if rng.random() < 0.6:
        new, told = mistyped(content, rng)
    else:
        tree, told = changed(yaml.safe_load(content), rng)
        try:
            new = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5).encode(
                "utf-8", "surrogatepass"
            )
        except (RecursionError, ValueError):  # ValueError: a number of too many digits
            new = b"tasks: " + b"[" * 3000
    return affordable(new), told
