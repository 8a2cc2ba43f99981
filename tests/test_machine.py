"""What programs decide before and about the threads that they use: how these wait, and how many there are."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from net import build_trunk, settings_class
from training import threads
from utils import machine, startup
from utils.machine import Load, cores_in_use, threads_for

PROJECT = Path(__file__).parent.parent
PROGRAMS = ["modelzoo", "benchmark", "predict", "distill", "export", "forget", "report", "describe"]
#                user nice system idle iowait irq softirq steal guest guest_nice
BEFORE = """cpu  300 0 50 900 20 0 5 0 0 0
cpu0 100 0 20 400 10 0 5 0 0 0
cpu1 200 0 30 500 10 0 0 0 0 0
cpu2 0 0 0 0 0 0 0 0 0 0
intr 1234 5
"""


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, env={"PATH": "", **environment}
    )


# How busy the machine is.


@pytest.mark.parametrize(
    ("core0", "core1", "cores", "used"),
    [
        ("100 0 20 410 10 0 5 0 0 0", "200 0 30 510 10 0 0 0 0 0", [0, 1], 0.0),  # both idle
        ("110 0 20 400 10 0 5 0 0 0", "200 0 30 510 10 0 0 0 0 0", [0, 1], 1.0),  # one of them at work
        ("104 3 22 400 10 0 6 0 0 0", "200 0 30 500 10 0 0 10 0 0", [0, 1], 2.0),  # also for the host's other guests
        ("105 0 20 402 13 0 5 0 0 0", "210 0 30 500 10 0 0 0 0 0", [0], 0.5),  # waiting for a disk is not work
        ("110 0 20 400 10 0 5 0 0 0", "210 0 30 500 10 0 0 0 0 0", [1, 7], 1.0),  # only the cores that may be used
        ("100 0 20 400 10 0 5 0 0 0", "200 0 30 500 10 0 0 0 0 0", [0, 1], 0.0),  # no time has passed
    ],
)
def test_cores_in_use(core0, core1, cores, used):
    after = f"cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 {core0}\ncpu1 {core1}\ncpu2 0 0 0 0 0 0 0 0 0 0\nintr 1240 5\n"
    assert cores_in_use(BEFORE, after, cores) == pytest.approx(used)


@pytest.mark.parametrize(
    ("cores", "others", "threads", "busy"),
    [(2, 0.0, 2, False), (2, 0.3, 2, False), (2, 1.0, 2, True), (2, 1.0, 1, False), (2, 2.0, 1, True),
     (16, 8.0, 8, False), (16, 8.0, 16, True), (1, 1.0, 1, True)],
)  # fmt: skip
def test_a_machine_is_busy_if_threads_would_have_to_share_cores(cores, others, threads, busy):
    assert Load(cores, others, threads).busy == busy


def decided(monkeypatch, others, environment):
    monkeypatch.setattr(machine, "measured_load", lambda environment: Load(2, others, 2))
    monkeypatch.setattr(machine, "_notice", None)
    machine.choose_waiting(environment)
    return environment, machine.notice()


def test_threads_sleep_on_a_busy_machine(monkeypatch):
    environment, said = decided(monkeypatch, 1.3, {})
    assert environment == {"OMP_WAIT_POLICY": "passive"}
    assert said == "busy: 1.3 of 2 cores in use by others; threads wait without spinning"


def test_threads_spin_on_a_quiet_machine(monkeypatch):
    assert decided(monkeypatch, 0.1, {}) == ({}, None)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    environment, said = decided(monkeypatch, 2.0, {name: "1"})
    assert environment == {name: "1"}
    assert said == "busy: 2.0 of 2 cores in use by others; threads wait as the environment says"


def test_a_run_does_not_depend_on_how_threads_wait(tmp_path):
    members = []
    for name, value in (("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "1000")):
        run = tmp_path / name
        done = python("modelzoo.py", "--samples", "4", "--epochs", "1", "--threads", "2", "--device", "cpu",
                      "--rounds", "1", "--run_dir", str(run), **{name: value})  # fmt: skip
        assert done.returncode == 0, done.stderr
        members.append([path.read_bytes() for path in sorted(run.glob("[mp]*/*.safetensors"))])
    assert len(members[0]) == 4  # a member, its predictions, the targets, and which examples were kept
    assert members[0] == members[1]


# How many threads.


def test_multiply_adds_of_the_small_network():
    # Outputs times the inputs of each, layer by layer: 28 -> 26 -> 13 -> 11 -> 5 -> 3.
    expected = 26**2 * 80 * 9 + 11**2 * 80 * (80 * 9) + 3**2 * 80 * (80 * 9)
    assert threads.multiply_adds(build_trunk("conv", (1, 28, 28), settings_class("conv")()), (1, 28, 28)) == expected


def test_multiply_adds_of_groups_strides_and_linear_layers():
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(6 * 4 * 4, 5), nn.BatchNorm1d(5)
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert threads.multiply_adds(net, (4, 9, 9)) == 6 * 4 * 4 * (2 * 9) + 5 * 96
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class FromAParameter(nn.Module):
    """A layer whose input is a part of a parameter, as in a filter that a network makes of positions."""

    def __init__(self):
        super().__init__()
        self.layer, self.positions = nn.Linear(3, 7), nn.Parameter(torch.ones(5, 3))

    def forward(self, inputs):
        return self.layer(self.positions[: inputs.shape[1]])


def test_multiply_adds_of_a_layer_that_reads_a_parameter():
    assert threads.multiply_adds(FromAParameter(), (4,)) == 4 * 3 * 7


@pytest.mark.parametrize(("side", "expected"), [(8, 1), (28, 2), (32, 2)])
def test_a_network_gets_the_threads_that_its_work_is_worth(monkeypatch, side, expected):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(threads, "MOST_THREADS", 2)
    threads.use_threads(
        build_trunk("conv", (1, side, side), settings_class("conv")()), (1, side, side), 16, torch.device("cpu")
    )
    threads.use_threads(
        build_trunk("conv", (1, side, side), settings_class("conv")()), (1, side, side), 16, torch.device("meta")
    )
    assert asked == [expected]  # and nothing is changed where a CPU does not train


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(1, 128))
def test_more_work_never_gets_fewer_threads(one, other, most):
    less, more = sorted((one, other))
    assert 1 <= threads_for(less, most) <= threads_for(more, most) <= most


# Before torch is loaded.


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("modelzoo", ["--data_config", "config/dataset/none.yaml"], "none.yaml does not exist; config/dataset has"),
        ("modelzoo", ["--quiet", "--hp_config=none.yaml"], "none.yaml does not exist"),
        ("modelzoo", ["--method", "er", "--method_config", "none.yaml"], "none.yaml does not exist"),
        ("modelzoo", ["--extend", "none"], "--extend none does not exist"),
        ("benchmark", ["--config", "none.yaml", "--store", "s"], "none.yaml does not exist"),
        ("describe", ["none.yaml", "--out", "out"], "none.yaml does not exist"),
        *[(program, ["none"], "none is not the directory of a run") for program in PROGRAMS[2:-1]],
    ],
)
def test_a_path_that_does_not_exist_is_refused_before_torch_is_loaded(program, arguments, said):
    done = python("-X", "importtime", f"{program}.py", *arguments)
    *imports, told = done.stderr.splitlines()
    assert done.returncode == 2
    assert told.startswith(f"{program}.py: ")
    assert said in told
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in imports}
    assert "utils" in loaded
    assert not loaded & {"torch", "numpy", "yaml", "scipy", "sklearn"}


@pytest.mark.parametrize(
    ("program", "argv"),
    [
        ("modelzoo.py", ["--data_config", "config/dataset/split_digits.yaml", "--run_dir", "none"]),
        ("modelzoo.py", ["--data_config", "none.yaml", "--data_config=config/dataset/split_digits.yaml"]),  # the last
        ("modelzoo.py", ["--data_config", "none.yaml", "--help"]),
        ("modelzoo.py", ["--data_config"]),  # what the parser refuses is left to it
        ("predict.py", ["--top", "3", "none"]),
        ("report.py", ["config"]),
    ],
)
def test_what_may_be_right_is_left_to_the_program(monkeypatch, program, argv):
    monkeypatch.chdir(PROJECT)
    assert startup.wrong_path(program, argv) is None


def test_optimizers_do_without_the_compiler_until_somebody_needs_it():
    script = """
import sys, torch, training
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], 0.5)
weight.sum().backward()
optimizer.step()
assert weight.tolist() == [0.5, 0.5]
assert not any(name.startswith("torch._dynamo.") for name in sys.modules)
import torch._dynamo.config
assert "torch._dynamo.eval_frame" in sys.modules and torch._dynamo.config.cache_size_limit
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
