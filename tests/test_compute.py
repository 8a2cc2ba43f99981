"""What the process is told: memory that is kept, and the data's place."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.compute import provenance

PROJECT = Path(__file__).parent.parent
# Page faults of thirty rounds in which two blocks of 8 MB are filled and freed, after a few to get going.
COUNT = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import torch
from utils.compute import keep_freed_memory
if sys.argv[2] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
for round in range(40):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (2 << 20, 9 << 20):
        torch.ones(size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_not_mapped_in_again():
    faults = {}
    for how in ("kept", "given back"):
        done = subprocess.run(
            [sys.executable, "-c", COUNT, str(PROJECT), how], capture_output=True, text=True, check=True
        )
        faults[how] = int(done.stdout)
    assert faults["kept"] < 100 < 1000 < faults["given back"]


def test_only_changes_of_tracked_files_are_changes(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", "-A")
    git("commit", "-m", "begin")
    (tmp_path / "more.yaml").write_text("made by a command of the README")
    assert provenance(tmp_path)["uncommitted_changes"] is False
    (tmp_path / "code.py").write_text("2")
    assert provenance(tmp_path)["uncommitted_changes"] is True
