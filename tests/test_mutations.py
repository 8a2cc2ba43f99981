"""A few of the damaged and hostile inputs of tests/mutations.py, and those that once were not refused well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations import KINDS, REGRESSIONS, Case, case, outside, wrong_answer

MUTATIONS = Path(__file__).parent / "mutations.py"
# What these change does not come from a run that was made before.
PURE = ("valid", "dataset", "hyperparam", "method", "grid", "argv", "idx", "image", "cifar", "mini")


def test_mutated_inputs_are_read_or_refused_in_one_line():
    answer = subprocess.run(  # a process of its own, which has not trained anything before it forks
        [sys.executable, str(MUTATIONS), "--cases", str(len(KINDS)), "--regressions"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = {line.split()[0]: line.split() for line in answer.stdout.splitlines()}
    assert {kind: int(lines[kind][1]) for kind in KINDS} == {
        kind: 1 + sum(other == kind for other, _ in REGRESSIONS) for kind in KINDS
    }


@pytest.mark.parametrize("kind", PURE)
def test_a_case_is_a_function_of_kind_and_seed(kind):
    assert case(kind, 3) == case(kind, 3) != case(kind, 4)


@pytest.mark.parametrize(
    ("code", "stderr", "seconds", "size", "wrong"),
    [
        (2, "modelzoo.py: d.yaml does not exist\n", 0.1, 1 << 20, ""),
        (0, "begun with torch 1, goes on with 2: not the same to the bit\n", 0.1, 1 << 20, ""),
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
