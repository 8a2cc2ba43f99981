"""Mutated files of a run: safetensors, JSON, CSV."""

import contextlib
import csv
import io
import json
import pickle
import random
from typing import Any

import safetensors.torch
import torch

from tests.fuzz.pickles import gadgets
from tests.fuzz.values import changed, damaged, nested, odd_value, shown, text_or_tree
from tests.test_bad_input import (
    HOSTILE,
    HOSTILE_TEXT,
)


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined_safetensors(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def mutated_tensors(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A safetensors file with another header, other data, or another tree in its metadata."""
    how = rng.choice(["damage", "damage", "header", "tree", "tree", "tree", "size", "numbers", "hostile"])
    header, data = split_safetensors(content)
    tree = header.get("__metadata__", {}).get("tree")
    if how == "tree" and tree is not None:
        new, told = changed(json.loads(tree), rng)
        if rng.random() < 0.1:
            new, told = nested(500, lambda x: {"list": [x]}), "nested tree"
        try:
            header["__metadata__"]["tree"] = json.dumps(new)
        except (RecursionError, ValueError):
            header["__metadata__"]["tree"] = "[" * 10**5
        return joined_safetensors(header, data), f"tree: {told}"
    if how == "header" or how == "tree":
        new, told = changed(header, rng)
        with contextlib.suppress(RecursionError, ValueError):
            return joined_safetensors(new, data), f"header: {told}"
    if how == "size":
        length = rng.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1, len(content) - 8, len(content)])
        return joined_safetensors(header, data, length), f"header of {length}"
    if how == "numbers" and data:
        kind = rng.choice([b"\xff", b"\x7f", b"\x80", b"\0"])
        return joined_safetensors(header, kind * len(data)), f"all {kind!r}"
    if how == "hostile":
        return rng.choice([HOSTILE, HOSTILE_TEXT, pickle.dumps(rng.choice(gadgets()[:12]), 2)]), "hostile"
    return damaged(content, rng)


def mutated_json(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damaged(content, rng)
    new, told = changed(json.loads(content), rng)
    if rng.random() < 0.1:
        return rng.choice([b"[" * 10**5, b'{"a":' * 10**5, b"[" * 10**5 + b"]" * 10**5]), "nested"
    try:
        return json.dumps(new).encode("utf-8", "surrogatepass"), told
    except (RecursionError, ValueError):
        return b"9" * 5000, "digits"


def mutated_csv(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damaged(content, rng)
    rows = list(csv.reader(io.StringIO(content.decode())))
    how = rng.choice(["cell", "cell", "cell", "row", "column", "header", "huge", "double", "empty", "quote"])
    at = rng.randrange(len(rows))
    if how in ("cell", "header"):
        row = rows[0 if how == "header" else at]
        value = odd_value(rng)
        row[rng.randrange(len(row))] = (
            repr(value)[:3000]
            if isinstance(value, float)
            else f"{value!r:.5000}"
            if not (isinstance(value, int))
            else rng.choice(["9" * 5000, "-1", "0", str(2**64), "1e400"])
        )
    elif how == "row":
        del rows[at]
    elif how == "column":
        column = rng.randrange(len(rows[0]))
        rows = [row[:column] + row[column + 1 :] for row in rows]
    elif how == "huge":
        rows[at][rng.randrange(len(rows[at]))] = "x" * rng.choice([131073, 10**6])
    elif how == "double":
        rows.append(rows[at])
    elif how == "empty":
        rows = rows[: rng.choice([0, 1])]
    file = io.StringIO()
    csv.writer(file, lineterminator=rng.choice(["\n", "\n", "\r\n", "\r"])).writerows(rows)
    text = file.getvalue()
    if how == "quote":
        spot = rng.randrange(len(text))
        text = text[:spot] + rng.choice(['"', "\0", "\r", ",,,,", "\n\n", "\ufeff"]) + text[spot:]
    return text.encode("utf-8", "surrogatepass"), f"{how} {at}"


def mutated_file(path: str, content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """According to what it is."""
    if path.endswith(".yaml"):
        return text_or_tree(content, rng)
    if path.endswith(".json"):
        return mutated_json(content, rng)
    if path.endswith(".csv"):
        return mutated_csv(content, rng)
    if path.endswith(".safetensors"):
        return mutated_tensors(content, rng)
    return damaged(content, rng)


ODD_NAMES = [
    "x", "task_1/test", "task_9/test", "task_1", "task_x/weight", "task_/", "task_1/held_out", "", "task_-1/trunk",
    "task_1/nothing", "\x1b[2J", "task_" + "9" * 5000 + "/test",
]  # fmt: skip


def other_tensors(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A safetensors file that is one, with another tensor in it."""
    tensors = safetensors.torch.load(content)
    name = rng.choice(sorted(tensors))
    old = tensors[name]
    how = rng.choice(["dtype", "shape", "shape", "values", "values", "some", "gone", "name", "more", "swap"])
    told: object = ""
    if how == "dtype":
        told = rng.choice([torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16,
                           torch.float8_e5m2, torch.complex64])  # fmt: skip
        tensors[name] = old.to(told)
    elif how == "shape":
        told = rng.choice(["flat", "less", "more", "narrow", "wide", "deep", "turned", "empty", "none"])
        flat = old.reshape(len(old) if old.ndim else 1, -1)
        tensors[name] = {
            "flat": old.flatten(), "less": flat[1:].reshape(-1, *old.shape[1:]), "more": torch.cat([flat, flat[:1]]),
            "narrow": flat[:, 1:], "wide": torch.cat([flat, flat[:, :1]], 1), "deep": old[None], "turned": flat.T,
            "empty": old.new_zeros(0), "none": old.new_zeros(()),
        }[told].contiguous()  # fmt: skip
    elif how in ("values", "some"):
        told = rng.choice([float("nan"), float("inf"), -1, 0, 2, 99, 1e38, -float("inf"), 1e-40, 2**40])
        new = old.clone() if how == "some" else torch.empty_like(old)
        part = new.view(-1)[: 1 if how == "some" else None]
        part.fill_(told if old.is_floating_point() or abs(told) < 2**60 else 7)  # type: ignore[arg-type]
        tensors[name] = new
    elif how in ("gone", "name", "swap"):
        del tensors[name]
        if how == "name":
            told = rng.choice(ODD_NAMES)
            tensors[str(told)] = old
        elif how == "swap" and tensors:
            told = rng.choice(sorted(tensors))
            tensors[name], tensors[str(told)] = tensors[str(told)].clone(), old
    else:
        told = rng.choice(["task_1/trunk.bn1.weight", "task_2/test", "task_9/held_out", "more", "task_1/held_out"])
        tensors[str(told)] = old.clone()
    return safetensors.torch.save(tensors), f"{how} of {name:.40} {shown(told)}"


IN_MEMBERS: dict[str, list[Any]] = {
    "weights": [[], [0.0], [-1.0], [float("nan")], [float("inf")], [1e308] * 3, [True], ["1"], [1.0] * 9, None, 1.0],
    "tasks": [[], [0], [-1], [1, 1], [4], [2**31], [10**30], [True], ["1"], [1.0], [[1]], [None], None, "12"],
    "task_names": [[], [1], [None], ["a\nb"], ["\x1b[2J"], ["\ud800"], ["middle"] * 3, "abc", [""], [["x"]]],
    "classes": [[], [[]], [["a"]], [["a"] * 100000], ["ab"], [[1, 2]], [["a", "a"]], [None], [["\x1b[2J", "b"]], 2],
    "input_shape": [[], [1, 8], [1, 8, 8, 8], [3, 8, 8], [1, 0, 0], [1, -8, -8], [1, 30000, 30000], [10**6, 8, 8],
                    [1, 8, 9], ["1", "8", "8"], [1.5, 8, 8], [1, 2**40, 2**40], None, [True, 8, 8], [1, 1, 1]],
    "net": ["wrn16_4", "timm/resnet18", "timm/vit_giant_patch14_224", "nothing", "", None, 1, ["conv"], "conv "],
    "member": [-1, 1, 7, "0", None, True, 0.0, 2**40, 10**30],
    "episode": [-1, 0, 99, "1", None, True, 10**30],
    "parameters": [-1, 0, 10**30, "x", None, float("nan"), 1.5],
    "replaces_earlier": [True, False, None, "no", 2, [], {}],
    "dropout": [2.0, -1, "x", None],
}  # fmt: skip


def other_member(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A member's JSON file with a value that is near to what may be there."""
    facts = json.loads(content)
    key = rng.choice(sorted(IN_MEMBERS))
    new = rng.choice(IN_MEMBERS[key])
    if isinstance(new, list) and isinstance(facts[key], list) and new and len(facts[key]) > 1 and rng.random() < 0.5:
        new = [new[0], *facts[key][1:]]
    facts[key] = new
    return json.dumps(facts).encode("utf-8", "surrogatepass"), f"{key}: {shown(new)}"
