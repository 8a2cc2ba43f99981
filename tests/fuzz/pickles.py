"""Mutated and hostile pickles: CIFAR and Mini-ImageNet."""

import contextlib
import importlib
import io
import os
import pickle
import random
import struct
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.cases import CANARY, Case
from tests.fuzz.inputs import CONTINUAL, TINY, YAML, cifar_batch, mini_part, pixels
from tests.fuzz.values import changed, damaged, odd_value
from tests.test_bad_input import (
    CIFAR,
    HOSTILE,
    MINI,
    Hostile,
    Objects,
    Pointers,
)


class Gadget:
    """Calls something when it is unpickled."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple:
        return self.reduced


_TOUCH = f"open({CANARY!r}, 'w').close()"


def gadgets() -> list[Any]:
    import builtins
    import subprocess

    return [
        Hostile(), Pointers(), Objects(), Gadget(os.system, (f"touch {CANARY}",)), Gadget(eval, (_TOUCH,)),
        Gadget(exec, (_TOUCH,)), Gadget(builtins.open, (CANARY, "w")), Gadget(subprocess.Popen, (["touch", CANARY],)),
        Gadget(subprocess.check_output, (["touch", CANARY],)),
        Gadget(partial, (os.system, f"touch {CANARY}")), Gadget(reduce, (os.system, [f"touch {CANARY}"])),
        Gadget(os.mkdir, (CANARY,)), Gadget(importlib.import_module, ("antigravity",)),
        Gadget(np.fromfile, (CANARY,)), Gadget(np.save, (CANARY + ".npy", [1])), Gadget(np.load, (CANARY,)),
        Gadget(np.zeros, ((1 << 16, 1 << 16),)), Gadget(bytearray, (1 << 33,)), Gadget(list, (range(10**10),)),
        Gadget(np.dtype, ("O", False, True)), Gadget(np.ndarray, ((10,), "O")), Gadget(np.ndarray, ((1 << 34,), "u1")),
        Gadget(io.open, (CANARY, "w")), Gadget(Path, (CANARY,)), Gadget(Path.touch, (Path(CANARY),)),
        Gadget(torch.load, (CANARY,)), Gadget(type, ("X", (), {})), Gadget(globals, ()), Gadget(__import__, ("os",)),
        complex(1, 2), {1, 2}, frozenset({1}), bytearray(b"x"), range(3), slice(1), Ellipsis, 1.5, 10**400, "\ud800",
        np.zeros(3, "O"), np.zeros(3, "M8[s]"), np.zeros(2, [("a", "u1")]), np.zeros((0, 3072), np.uint8),
        np.zeros((2, 0), np.uint8), np.float64(1), np.array(3), np.zeros((8, 3072), np.int8),
        np.zeros((8, 3072), "<f4"), np.asfortranarray(pixels(8, 3072)), pixels(8, 3072)[:, ::-1], pixels(7, 3072),
        np.zeros((8, 84, 84, 3), ">u2"), np.array(["a", "b"]), np.array([b"a"]), np.array([2**63], np.uint64),
    ]  # fmt: skip


def odd_object(rng: random.Random) -> Any:
    """Something for a pickle."""
    pick = rng.random()
    if pick < 0.5:
        return rng.choice(gadgets())
    if pick < 0.6:
        return rng.choice([[0, 1, 2, 3] * 2, [True] * 8, [0.0] * 8, ["0"] * 8, [10**400] * 8, [-1] * 8, [10] * 8,
                           (0, 1, 2, 3, 0, 1, 2, 3), np.arange(8), [np.int64(0)] * 8, [[0]] * 8,
                           [None] * 8])  # fmt: skip
    return odd_value(rng)


def raw_pickles(rng: random.Random) -> tuple[bytes, str]:
    """Written by hand: what no Python object would give."""
    many = rng.choice([100, 10**5])
    text = b"X" + struct.pack("<I", many) + b"a" * many
    doubled = b"".join(b"(h%ch%c\x86q%ct" % (i, i, i + 1) for i in range(40))
    made: dict[str, Callable[[], bytes]] = {
        "lists in lists": lambda: b"]" * many + b"a" * (many - 1) + b".",
        "empty dictionaries": lambda: b"(" + b"}" * (10 * many) + b"l.",
        "empty sets": lambda: b"\x80\x04(" + b"\x8f" * (10 * many) + b"l.",
        "marks": lambda: b"(" * many + b".",
        "tuple of tuples": lambda: b")q\x00" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60)) + b"h<.",
        "text again and again": lambda: b"}" + b"".join(
            b"c_codecs\nencode\n" + (text + b"q\x01" if not i else b"h\x01") + b"X\x06\x00\x00\x00latin1\x86R0"
            for i in range(2000 if many > 1000 else 20)) + b".",
        "huge string": lambda: b"\x80\x04\x8e" + struct.pack("<Q", rng.choice([2**31, 2**40, 2**63])) + b"x.",
        "huge text": lambda: b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.",
        "huge frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "huge number": lambda: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        "long number": lambda: b"\x80\x02\x8b" + struct.pack("<i", 10 * many) + b"\x01" * (10 * many) + b".",
        "number in digits": lambda: b"I" + b"9" * 10 * many + b"\n.",
        "huge memo": lambda: b"Nr" + struct.pack("<I", rng.choice([2**31 - 1, 2**32 - 1])) + b".",
        "memo": lambda: b"N" + b"".join(b"r" + struct.pack("<I", 2**20 * i) for i in range(100)) + b".",
        "persistent": lambda: b"Pos.system\n.",
        "extension": lambda: b"\x80\x02\x82\x01.",
        "instance": lambda: b"(S'touch canary'\nios\nsystem\n.",
        "object": lambda: b"(cos\nsystem\nS'touch canary'\no.",
        "stack global": lambda: b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
        "new object": lambda: b"\x80\x02csubprocess\nPopen\n(]S'touch'\naS'canary'\natR.",
        "dotted": lambda: b"\x80\x04\x8c\x05numpy\x8c\x18ndarray.__class__.__mro__\x93.",
        "through dtype": lambda: b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        "build": lambda: b"cnumpy\ndtype\n(S'u1'\ntR}S'__class__'\ncnumpy\nndarray\nsb.",
        "build attributes": lambda: b"cnumpy\nndarray\n)R}S'__setstate__'\nNsb.",
        "build function": lambda: b"c_codecs\nencode\n}S'__code__'\nNsb.",
        "build class": lambda: b"cnumpy\nndarray\n}S'__setstate__'\nc_codecs\nencode\nsb.",
        "append to array": lambda: b"cnumpy\nndarray\n)R(K\x01K\x02e.",
        "array of shape": lambda: _array(b"(" + rng.choice([b"J\xff\xff\xff\x7f", b"K\x00"]) + b"J\xff\xff\xff\x7ft"),
        "array of text": lambda: _array(b"(K\x01t", b"S99999"),
        "deep": lambda: b"(" * 10**5 + b"t" * 10**5 + b".",
        "itself": lambda: b"]q\x00h\x00a.",
        "itself as value": lambda: b"}q\x00(X\x04\x00\x00\x00datah\x00X\x06\x00\x00\x00labelsh\x00u.",
        "no stop": lambda: b"N" * many,
        "doubled": lambda: b")q\x00" + doubled + b".",
    }  # fmt: skip
    name = rng.choice(list(made))
    return made[name](), name


def _array(shape: bytes, kind: bytes = b"u1") -> bytes:
    return (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00tS'b'\ntR(K\x01" + shape
            + b"cnumpy\ndtype\n(S'" + kind + b"'\nK\x00K\x01tRI00\nS'abcd'\ntb.")  # fmt: skip


def pickled(value: Any, rng: random.Random) -> bytes:
    """In some protocol; what cannot be pickled becomes something hostile."""
    try:
        return pickle.dumps(value, protocol=rng.randrange(6))
    except (pickle.PicklingError, AttributeError, RecursionError, TypeError, ValueError):
        return HOSTILE


def mutated_pickle(valid: Any, rng: random.Random) -> tuple[bytes, str]:
    pick = rng.random()
    if pick < 0.4:
        return damaged(pickle.dumps(valid, protocol=rng.choice([0, 2, 4])), rng)
    if pick < 0.55:
        return raw_pickles(rng)
    with contextlib.suppress(RecursionError):
        tree, told = changed(valid, rng, odd_object)
        return pickled(tree, rng), told
    return HOSTILE, "hostile"


def cifar_pickle(rng: random.Random) -> Case:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    valid = pickle.dumps(cifar_batch(), protocol=2)
    files = {**TINY, "d.yaml": YAML["cifar"], **{f"{CIFAR}/{name}": valid for name in names}}
    name, content = rng.choice(names), cifar_batch()
    if rng.random() < 0.15:
        name, content = "batches.meta", {"label_names": list("abcdefghij"), "num_cases_per_batch": 8}
    files[f"{CIFAR}/{name}"], told = mutated_pickle(content, rng)
    return Case("", 0, [*CONTINUAL, "--samples", "2"], files, told=f"{name}: {told}")


def mini_pickle(rng: random.Random) -> Case:
    valid = pickle.dumps(mini_part(), protocol=2)
    files = {**TINY, "d.yaml": YAML["mini"], **{f"{MINI}-{part}.pkl": valid for part in ("train", "val", "test")}}
    name = rng.choice(("train", "val", "test"))
    files[f"{MINI}-{name}.pkl"], told = mutated_pickle(mini_part(), rng)
    return Case("", 0, [*CONTINUAL, "--samples", "2"], files, told=f"{name}: {told}")
