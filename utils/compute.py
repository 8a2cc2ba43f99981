"""Device, precision and memory of a run, and the versions that it ran with."""

import ctypes
import importlib.metadata
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError, unknown

_PROJECT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Compute:
    """The device and the precision that networks run in."""

    device: torch.device
    bf16: bool = False
    captured: bool = False  # training steps are replayed as CUDA graphs

    def autocast(self) -> AbstractContextManager[object]:
        # Even where it is not enabled, torch's context would take a twentieth of the step of a tiny network.
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    @contextmanager
    def training_stream(self) -> Iterator[None]:
        """Run training steps on one CUDA stream, not the default one: a CUDA graph can only be captured on another."""
        if self.device.type != "cuda":
            yield
            return
        outside, inside = torch.cuda.current_stream(self.device), _side_stream(self.device)
        inside.wait_stream(outside)
        with torch.cuda.stream(inside):
            yield
        outside.wait_stream(inside)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def pick_device(name: str) -> torch.device:
    """The device named auto, cpu, cuda, cuda:N or mps; UserError if the name is unknown or the device is not there."""
    if name == "auto":
        gpu = "cuda" if torch.cuda.is_available() else "mps"
        return torch.device(gpu if gpu == "cuda" or torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and (kind != "cuda" or not index.isdecimal())):
        raise UserError(f"--device: {unknown('device', name, ['auto', 'cpu', 'cuda', 'cuda:N', 'mps'])}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count() or 'no'} CUDA device{'s' * (torch.cuda.device_count() != 1)}"
        raise UserError(f"--device {name}: this machine has {found}; use --device cpu or auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has no Metal GPU; use --device cpu or auto")
    return torch.device(name)


def runs_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether --precision fp32, bf16 or auto means bfloat16 on this device."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def place(data: Tensor, device: torch.device) -> Tensor:
    """Copy data to the device, but leave it on the host if it would take more than half of a GPU's free memory."""
    if device.type == "cuda" and data.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    return data.to(device)


def make_reproducible() -> None:
    """Choose deterministic cuDNN algorithms: the same run twice on one machine gives the same bits."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Let each training step reuse the memory of the last one: glibc would return it, which takes a tenth of a step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # a C library without mallopt: musl, macOS
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD in malloc.h
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def describe_device(device: torch.device) -> str:
    """The device in words, such as "cpu: 2 threads"."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device}: {threads} thread{'s' * (threads != 1)}" if device.type == "cpu" else str(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a CUDA device, else the most the process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def provenance(project: Path = _PROJECT) -> dict[str, object]:
    """Versions of the libraries that a result depends on, and the git commit of `project` (None outside a checkout)."""
    versions = {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}
    changed = bool(_git(project, "status", "--porcelain", "--untracked-files=no"))
    return {"versions": versions, "commit": _git(project, "rev-parse", "HEAD"), "uncommitted_changes": changed}


@cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(project: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(project), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
