"""The fuzzer itself: its cases can be repeated, and it finds out what is wrong with an answer."""

import pytest

from tests.fuzz.attempts import outside, wrong_answer
from tests.fuzz.cases import Case
from tests.fuzz.kinds import case

# What these change does not come from a run that was made before.
PURE = ("valid", "dataset", "hyperparam", "method", "grid", "argv", "idx", "image", "cifar", "mini")


@pytest.mark.parametrize("kind", PURE)
def test_a_case_is_a_function_of_kind_and_seed(kind):
    assert case(kind, 3) == case(kind, 3) != case(kind, 4)


@pytest.mark.parametrize(
    ("code", "stderr", "seconds", "size", "wrong"),
    [
        (2, "modelzoo.py: d.yaml does not exist\n", 0.1, 1 << 20, ""),
        (0, "begun with torch 1, resumed with 2: not the same to the bit\n", 0.1, 1 << 20, ""),
        (1, "modelzoo.py: the training loss is not finite in epoch 1\n", 0.1, 1 << 20, ""),
        (1, "modelzoo.py: something else\n", 0.1, 1 << 20, "exit code 1"),
        (0, "x.py:1: UserWarning: odd\n", 0.1, 1 << 20, "on stderr"),
        (2, "x.py:1: UserWarning: odd\nmodelzoo.py: odd\n", 0.1, 1 << 20, "not one line"),
        (2, "modelzoo.py: \x1b[2J\n", 0.1, 1 << 20, "control characters"),
        (2, "modelzoo.py: d.yaml does not exist\n", 11.0, 1 << 20, "11 s"),
        (2, "modelzoo.py: d.yaml does not exist\n", 0.1, 3 << 30, "3072 MiB"),
    ],
)
def test_a_wrong_answer_is_found_out(code, stderr, seconds, size, wrong):
    found = wrong_answer(Case("argv", 0, [], {}), code, stderr, seconds, size)
    assert wrong in found
    assert bool(wrong) == bool(found)


def test_what_is_written_elsewhere_is_found_out():
    before = {"home": (), "home/d.yaml": (1, 2, 3)}
    after = before | {"home/run": (), "home/run/x": (2, 2, 2), "home/data/cache/a.safetensors": (3, 3, 3)}
    asked = Case("argv", 0, ["--run_dir", "run"], {})
    assert outside(before, after, asked) == []
    assert outside(before, after | {"home/d.yaml": (1, 2, 4), "home/run2": (5, 5, 5)}, asked) == [
        "home/d.yaml", "home/run2"
    ]  # fmt: skip
