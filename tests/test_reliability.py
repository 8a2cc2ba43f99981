"""One owner of a run directory, checksums that find every damage, and failures that end with one line."""

import errno
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzoo
import utils.files
from datasets import build_stream
from datasets.mixture import Mixture
from evaluation.accuracy import Evaluation
from modelzoo import main
from records import Run
from records.checkpoints import RunCheckpoints
from records.lock import LOCK, locked
from records.manifest import Manifest, read_manifest
from tests.test_resume import Killed, kill_at_write, options, results, start, stop_after, write_configs
from tests.toys import toy_stream
from training.batches import Replays
from utils.compute import provenance
from utils.errors import TrainingError, UserError, enough_memory
from utils.seeding import generator
from utils.torchvision_ops import declare_missing_operators
from utils.trees import from_bytes, to_bytes
from utils.yaml_files import parse_yaml

PROJECT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs()


def interrupted(monkeypatch, method="zoo", steps=14):
    """A run in its second or third episode, with a network half trained."""
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        assert start("run", *options(method)) == 143


# Begins a program that only locks: without all else that its packages import, which would take a second.
LOCK_ALONE = f"""
import sys, types
from pathlib import Path
for name in ("records", "studies"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(Path({str(PROJECT)!r}, name))]
"""

# Options.


def test_a_finished_run_is_told_again_and_not_touched(capsys):
    assert start("run", *options("zoo")) == 0
    told = capsys.readouterr().out
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert start("run", "--resume") == 0
    assert capsys.readouterr().out == told
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        (["--seed", "1"], "seed"),
        (["--epochs", "5"], "epochs"),
        (["--method", "er"], "method"),
        (["--tasks_per_round", "4", "--selection", "uniform"], "selection, tasks_per_round"),
        (["--hp_config", "other.yaml"], "hp_config"),
        (["--data_config", "other_stream.yaml"], "data_config"),
        (["--no_augment"], "no_augment"),
        (["--precision", "bf16"], "precision"),
    ],
)
def test_changed_options_are_refused(changed, key, monkeypatch, capsys):
    interrupted(monkeypatch)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    Path("other.yaml").write_text("{model: conv, batch: 8, epochs: 3, lr: 0.02}")
    Path("other_stream.yaml").write_text("{dataset: rotated_digits, tasks: [[0, 1], [10, 11, 12], [22, 24]]}")
    capsys.readouterr()
    assert start("run", "--resume", *changed) == 2
    assert capsys.readouterr().err == (
        f"modelzoo.py: --resume: run/config.yaml has another {key}; leave out what has changed, "
        "or name another --run_dir for another run\n"
    )
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_what_cannot_change_the_result_may_change(monkeypatch):
    interrupted(monkeypatch)
    Path("moved.yaml").write_text(Path("h.yaml").read_text())
    more = ["--hp_config", "moved.yaml", "--data_dir", "elsewhere", "--checkpoint_minutes", "0", "--device", "auto"]
    assert start("run", "--resume", *more) == 0
    assert start("whole", *options("zoo")) == 0
    assert results("run") == results("whole")


def test_a_run_goes_on_with_another_number_of_threads(monkeypatch, capsys):
    interrupted(monkeypatch, steps=34)  # of 36: two threads are slow where there is so little to compute
    assert yaml.safe_load(Path("run/config.yaml").read_text())["threads"] == 1
    capsys.readouterr()
    try:
        assert start("run", "--resume", "--threads", "2") == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert capsys.readouterr().err == "begun with threads 1, resumed with 2: not the same to the bit\n"


def test_times_are_those_of_the_whole_run(monkeypatch):
    """The first process is slow, and ends late in its second or third episode."""

    def slow(self, *, epoch_ends=False):
        time.sleep(0.02)
        return due(self, epoch_ends=epoch_ends)

    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        due = RunCheckpoints.due
        patch.setattr(RunCheckpoints, "due", slow)
        assert start("run", *options("zoo")) == 143
    assert start("run", "--resume") == 0
    run = Run.load("run")
    for episode in run.episodes:
        assert episode.seconds > episode.train_seconds
    assert sum(episode.train_seconds for episode in run.episodes) == run.summary["train_seconds"] > 20 * 0.02
    assert sum(episode.seconds for episode in run.episodes) < run.summary["total_seconds"]


def test_a_reference_is_compared_with_after_the_interruption_too(monkeypatch):
    assert start("alone", *options("isolated")) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 14)
        assert start("run", *options("zoo"), "--isolated", "alone") == 143
    assert start("run", "--resume") == 0
    assert json.loads(Path("run/summary.json").read_text())["fwt_isolated"] is not None


def changed_stream(config, seed, device):
    """The stream of a run with another pixel in a test image."""
    stream = build_stream(config, seed, device)
    test = stream.tasks[1].test
    test.store[test.rows[3], 0, 4, 4] += 1
    return stream


def test_other_data_are_refused(monkeypatch, capsys):
    interrupted(monkeypatch)
    monkeypatch.setattr("training.features.build_stream", changed_stream)
    capsys.readouterr()
    assert start("run", "--resume") == 2
    assert "the data are not those that run was trained on" in capsys.readouterr().err


def test_a_reference_of_other_data_is_refused(monkeypatch, capsys):
    assert start("alone", *options("isolated")) == 0
    monkeypatch.setattr("training.features.build_stream", changed_stream)
    capsys.readouterr()
    assert start("run", *options("zoo"), "--isolated", "alone") == 2
    assert "--isolated alone was run with another 'data_sha256'" in capsys.readouterr().err


def test_a_misspelt_run_is_not_begun(capsys):
    more = ["--quiet", "--data_dir", "d", "--threads", "1", "--device", "cpu"]
    assert start("runn", "--resume", *more) == 2
    assert capsys.readouterr().err == (
        "modelzoo.py: --resume: runn holds no run; check --run_dir, or add the options of a run to begin\n"
    )
    assert main(["--resume"]) == 2
    assert {path.name for path in Path().iterdir()} == {"d.yaml", "h.yaml"}


def test_options_that_contradict_each_other_are_refused_when_a_run_is_begun(capsys):
    assert start("run", "--resume", "--replay_frac", "0.5") == 2
    assert "add --continual" in capsys.readouterr().err


def test_a_run_of_another_commit_is_warned_of(monkeypatch, capsys):
    interrupted(monkeypatch)
    made = provenance()
    monkeypatch.setattr("records.writing.provenance", lambda: {**made, "commit": "abc"})
    capsys.readouterr()
    assert start("run", "--resume") == 0
    assert "resumed with abc: not the same to the bit" in capsys.readouterr().err


@pytest.mark.parametrize("stated", [{"format": 1}, {}, {"format": "2"}])
def test_a_run_of_another_format_is_refused_in_one_line(stated, capsys):
    assert start("run", *options("isolated")) == 0
    content = json.loads(Path("run/manifest.json").read_text())
    del content["format"]
    Path("run/manifest.json").write_text(json.dumps(content | stated))
    for command in (["--verify", "run"], ["--resume", "--run_dir", "run"]):
        capsys.readouterr()
        assert main(command) == 2
        assert re.fullmatch(
            r"modelzoo.py: run/manifest.json is of a run of format [12]; this version reads format 3 only: .+\n",
            capsys.readouterr().err,
        )
    assert start("run", *options("isolated"), "--overwrite") == 0


def test_tables_grow_and_what_was_not_committed_of_them_is_cut_off(monkeypatch):
    interrupted(monkeypatch)
    tables = [Path("run/metrics.csv"), Path("run/episodes.csv")]
    begun = {table: table.read_bytes() for table in tables}
    inode = {table: table.stat().st_ino for table in tables}
    for table in tables:
        with table.open("ab") as file:
            file.write(b"9,9,half of a li")
    assert start("run", "--resume") == 0
    for table in tables:
        assert table.read_bytes().startswith(begun[table])
        assert table.stat().st_ino == inode[table]  # appended to, not replaced
    assert start("whole", *options("zoo")) == 0
    assert results("run") == results("whole")


def test_files_of_people_are_left_alone(monkeypatch):
    interrupted(monkeypatch)
    mine = ["members/member_000.onnx", "members/task_notes.txt", "download.partial", "figures/a.png", "state/x.txt"]
    for name in mine:
        Path("run", name).parent.mkdir(exist_ok=True)
        Path("run", name).write_text("mine")
    Path("run/members/member_009.safetensors").write_text("half-done")
    begun = Path("run/metrics.csv.0123456789abcdef.partial")
    begun.write_text("half-done")
    assert start("run", "--resume") == 0
    assert start("run", "--resume") == 0
    assert all(Path("run", name).exists() for name in mine)
    assert not Path("run/members/member_009.safetensors").exists()
    assert not begun.exists()


def test_overwriting_that_was_killed_is_never_gone_on_with_the_old_options(monkeypatch):
    assert start("run", *options("zoo")) == 0
    for count in (1, 1.5, 2):
        with monkeypatch.context() as patch:
            kill_at_write(patch, count)
            with pytest.raises(Killed):
                start("run", *options("er"), "--overwrite")
        if start("run", "--resume") == 0:
            assert json.loads(Path("run/summary.json").read_text())["method"] == "er"
        assert start("run", *options("zoo"), "--overwrite") == 0


def test_a_text_like_a_number_comes_back_as_a_text():
    values = {"classes": ["1e5", "1.5e3", "yes", "2020-01-01", "0x1f", 1e5, 1e-5]}
    assert parse_yaml("x", utils.files.yaml_bytes(values).decode()) == values


def test_output_that_nobody_reads_ends_without_a_word():
    given = [part for part in options("zoo") if part != "--quiet"]
    command = [sys.executable, str(PROJECT / "modelzoo.py"), *given, "--run_dir", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() in (0, 141)


# Integrity.


def flipped(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("whole", [True, False])
def test_a_flipped_bit_in_any_file_is_found(whole, monkeypatch, capsys):
    if whole:
        assert start("run", *options("zoo")) == 0
    else:
        interrupted(monkeypatch)
    files = sorted(path for path in Path("run").rglob("*") if path.is_file())
    assert {path.name.split(".")[0] for path in files} >= {"config", "manifest", "episodes", "metrics", "member_000"}
    assert any(path.parent.name == "state" for path in files)
    assert main(["--verify", "run"]) == 0
    rng = torch.Generator().manual_seed(0)
    for path in files:
        kept = path.read_bytes()
        for bit in torch.randint(8 * len(kept), (2,), generator=rng).tolist():
            flipped(path, bit)
            capsys.readouterr()
            for command in (["--verify", "run"], ["--resume", "--run_dir", "run"]):
                assert main(command) == 2, (path, bit)
                out, err = capsys.readouterr()
                assert out == ""
                assert re.fullmatch(rf"modelzoo.py: {re.escape(str(path))} is damaged \(.+\); .+\n", err), err
            path.write_bytes(kept)
    for path in files:
        if not path.name.startswith("events."):
            kept = path.read_bytes()
            path.unlink()
            assert main(["--resume", "--run_dir", "run"]) == 2, path
            assert re.search("is missing|has no manifest|not a run", capsys.readouterr().err)
            path.write_bytes(kept)
    assert main(["--verify", "run"]) == 0


def test_tensorboards_files_may_be_removed(monkeypatch):
    interrupted(monkeypatch)
    (events,) = Path("run").glob("events.*")
    events.unlink()
    assert start("run", "--resume") == 0
    assert start("whole", *options("zoo")) == 0
    assert results("run") == results("whole")


def test_a_flipped_bit_in_a_reference_is_found(capsys):
    assert start("alone", *options("isolated")) == 0
    flipped(Path("alone/summary.json"), 100)
    assert start("run", *options("zoo"), "--isolated", "alone") == 2
    assert "alone/summary.json is damaged" in capsys.readouterr().err


def test_verify_names_every_damaged_file_and_what_is_not_of_the_run(capsys):
    assert start("run", *options("zoo")) == 0
    flipped(Path("run/predictions/member_001.safetensors"), 999)
    Path("run/members/member_002.json").unlink()
    Path("run/notes.txt").write_text("mine")
    capsys.readouterr()
    assert main(["--verify", "run"]) == 2
    out, err = capsys.readouterr()
    assert "not part of the run: run/notes.txt" in out
    assert "run/predictions/member_001.safetensors is damaged" in out
    assert "members/member_001.safetensors and the data give it again" in out
    assert "run/members/member_002.json is missing" in err
    assert "(and 1 more)" in err


LACKS: list[Exception] = [OSError(code, os.strerror(code)) for code in (errno.EACCES, errno.EMFILE, errno.EIO)]
LACKS += [MemoryError(), ImportError("libm.so: Too many open files")]  # the second of a library that is loaded late


def test_a_file_that_cannot_be_read_now_is_not_called_damaged(monkeypatch, capsys):
    interrupted(monkeypatch)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    opened = io.open

    def told(command, name, lack):
        def failing(path, *how, **more):
            if str(path).startswith(f"run/{name}"):
                raise lack
            return opened(path, *how, **more)

        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", failing)
            patch.setattr("io.open", failing)
            return main(command), capsys.readouterr().err

    for name, lack in itertools.product(["manifest.json", "config.yaml", "members/member_000.", "state/"], LACKS):
        for command in (["--verify", "run"], ["--resume", "--run_dir", "run"]):
            code, error = told(command, name, lack)
            assert code == (1 if isinstance(lack, MemoryError) else 2)
            assert (getattr(lack, "strerror", None) or str(lack) or "not enough memory") in error
            assert not re.search("damaged|overwrite", error)
            assert error.count("\n") == 1
    code, error = told([*options("zoo"), "--run_dir", "run"], "config.yaml", LACKS[0])
    assert (code, error) == (2, "modelzoo.py: --run_dir run cannot be used: Permission denied\n")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert main(["--verify", "run"]) == 0


def test_the_saved_state_is_not_blamed_for_what_the_machine_lacks(monkeypatch, capsys):
    interrupted(monkeypatch)

    def failing(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Evaluation, "after", failing)
    capsys.readouterr()
    assert start("run", "--resume") == 1
    assert "run cannot be written: No space left on device; when it can, resume" in capsys.readouterr().err


def test_a_manifest_cannot_name_a_file_outside_the_run(capsys):
    assert start("run", *options("zoo")) == 0
    manifest = read_manifest(Path("run"))
    for name in ("../d.yaml", "/etc/hostname", "members/../../d.yaml", "state/x/y"):
        Path("run/manifest.json").write_bytes(Manifest(3, 3, 1.0, {**manifest.files, name: (1, "")}).content())
        assert main(["--verify", "run"]) == 2
        assert "is no file of a run" in capsys.readouterr().err


def test_a_run_does_not_write_through_links(monkeypatch, capsys):
    interrupted(monkeypatch)
    shutil.move("run/members", "elsewhere")
    Path("run/members").symlink_to(Path("elsewhere").resolve())
    assert start("run", "--resume") == 2
    assert "run/members is a link" in capsys.readouterr().err


def test_a_run_that_is_replaced_removes_nothing_behind_links():
    assert start("run", *options("isolated")) == 0
    shutil.move("run/members", "elsewhere")
    Path("run/members").symlink_to(Path("elsewhere").resolve())
    mine = {path: path.read_bytes() for path in Path("elsewhere").iterdir()}
    assert start("run", *options("zoo"), "--overwrite") == 0
    assert {path: path.read_bytes() for path in Path("elsewhere").iterdir()} == mine
    assert not Path("run/members").is_symlink()


def test_two_writers_of_a_file_do_not_meet_and_follow_no_link(monkeypatch):
    Path("precious").write_text("mine")
    Path("f.partial").symlink_to("precious")
    Path("f").symlink_to("precious")
    with utils.files.written_whole(Path("f")) as one:
        one.write(b"one")
        with utils.files.written_whole(Path("f")) as other:
            other.write(b"other")
        assert Path("f").read_text() == "other"
    assert Path("f").read_text() == "one"
    assert Path("precious").read_text() == "mine"
    assert {path.name for path in Path().iterdir()} >= {"f", "f.partial", "precious"}
    assert not list(Path().glob("f.*.partial"))
    monkeypatch.setattr("utils.files.secrets.token_hex", lambda size: "guessed")
    Path("f.guessed.partial").symlink_to("precious")
    with pytest.raises(FileExistsError):
        utils.files.write_bytes(Path("f"), b"two")
    assert (Path("f").read_text(), Path("precious").read_text()) == ("one", "mine")


def test_what_was_downloaded_is_not_unpickled_by_others(monkeypatch, capsys):
    def hostile(url, root, filename, md5):
        batches = Path(root, "cifar-10-batches-py")
        batches.mkdir(parents=True)
        for number in (1, 2, 3, 4, 5):
            (batches / f"data_batch_{number}").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
        (batches / "test_batch").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")

    declare_missing_operators()
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", hostile)
    assert start("run", "--data_config", str(PROJECT / "config/dataset/split_cifar10.yaml")) == 2
    assert "wants to run os.system" in capsys.readouterr().err
    assert not Path("canary").exists()


# One owner.


def test_a_second_run_is_told_who_has_the_directory(capsys):
    with locked(Path("run")):
        assert start("run", *options("zoo")) == 2
    assert re.fullmatch(
        rf"modelzoo.py: --run_dir run is in use by host {socket.gethostname()}, process {os.getpid()}, "
        r"since [-\d]+ [:\d]+; wait for it, or name another folder\n",
        capsys.readouterr().err,
    )
    assert not Path("run", LOCK).exists()
    assert start("run", *options("zoo")) == 0


def test_the_lock_of_a_dead_process_is_taken_over():
    program = LOCK_ALONE + "import time\nfrom records.lock import locked\n"
    program += "with locked(Path('run')):\n    print('here', flush=True)\n    time.sleep(60)"
    owner = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE
    )
    assert owner.stdout.readline() == b"here\n"
    with pytest.raises(UserError, match=f"process {owner.pid}"), locked(Path("run")):
        pass
    owner.kill()
    owner.wait()
    assert json.loads(Path("run", LOCK).read_text())["process"] == owner.pid
    with locked(Path("run")):
        assert json.loads(Path("run", LOCK).read_text())["process"] == os.getpid()


def leave_lock(seconds_ago, host="elsewhere"):
    """A new lock file of another process, touched so long ago."""
    Path("run").mkdir(exist_ok=True)
    Path("new").write_text(json.dumps({"host": host, "process": 7, "since": "2026-01-01 00:00:00"}))
    os.utime("new", (time.time() - seconds_ago,) * 2)
    Path("new").replace(Path("run", LOCK))


def test_the_lock_of_another_host_is_taken_over_when_its_owner_has_died(monkeypatch):
    """Its owner touches it every 30 seconds, and loses it after ten minutes without."""
    leave_lock(590)
    with (
        pytest.raises(UserError, match=r"in use by host elsewhere, process 7, .* last seen 59\d s ago; .*run/.lock"),
        locked(Path("run")),
    ):
        pass
    assert "elsewhere" in Path("run", LOCK).read_text()
    leave_lock(610)
    with locked(Path("run")):
        assert json.loads(Path("run", LOCK).read_text())["process"] == os.getpid()
    assert not Path("run", LOCK).exists()


def test_the_owner_of_a_lock_keeps_it_alive(monkeypatch):
    monkeypatch.setattr("records.lock.BEAT", 0.01)
    with locked(Path("run")):
        os.utime(Path("run", LOCK), (0, 0))
        for _ in range(1000):
            time.sleep(0.01)
            if Path("run", LOCK).stat().st_mtime > 0:
                return
    pytest.fail("the lock file was not touched")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: leave_lock(0), "was taken over by host elsewhere, process 7"),
        (lambda: Path("run", LOCK).unlink(), "is not locked any more"),
        (lambda: leave_lock(0, socket.gethostname()), "was taken over by host"),
    ],
)
def test_a_process_that_has_lost_its_lock_writes_no_more(change, words):
    """Another host takes over the lock file of a process that was suspended, or people remove it."""
    program = LOCK_ALONE + "import os, time\nimport records.lock\nrecords.lock.BEAT = 0.01\n"
    program += "with records.lock.locked(Path('run')):\n    os.chdir('/')\n    print('here', flush=True)\n"
    program += "    time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout.readline() == "here\n"
        change()
        assert owner.wait(50) == 1
        assert f"run {words}" in owner.stderr.read()


def test_the_lock_of_somebody_else_is_not_removed():
    with locked(Path("run")):
        leave_lock(0, socket.gethostname())
    assert "process" in Path("run", LOCK).read_text()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).symlink_to(Path("precious").resolve())])
def test_a_pipe_or_link_in_place_of_the_lock_file_is_one_error(make):
    Path("run").mkdir()
    Path("precious").write_text("mine")
    make(Path("run", LOCK))
    with pytest.raises(UserError, match="run cannot be written"), locked(Path("run")):
        pass
    assert Path("precious").read_text() == "mine"


# Failing well.


@pytest.mark.parametrize("method", ["zoo", "er"])
def test_a_full_disk_ends_with_one_line_and_the_run_goes_on_later(method, monkeypatch, capsys):
    assert start("whole", *options(method)) == 0
    sync = utils.files.os.fsync
    for count in range(3, 200, 27):
        shutil.rmtree("run", ignore_errors=True)
        left = [count]

        def full(file, left=left):
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file)

        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr("utils.files.os.fsync", full)
            code = start("run", *options(method))
        if code == 0:
            break
        error = capsys.readouterr().err
        assert code == 1
        assert re.fullmatch(
            r"modelzoo.py: run\S* cannot be written: No space left on device; when it can, resume with: "
            r"python modelzoo.py --resume --run_dir run\n",
            error,
        ), error
        assert not list(Path("run").rglob("*.partial"))
        assert start("run", "--resume") == 0
        assert results("run") == results("whole")
    assert count > 20


def gpu_is_full():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"
    )


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: torch.empty(1 << 50), "it asked for 4503599627370496 bytes more"),
        (lambda: bytearray(1 << 62), "not enough memory for training; less"),
        (gpu_is_full, "it asked for 20.00 MiB more"),
        (lambda: __import__("numpy").empty(1 << 50), "it asked for 8.00 PiB more"),
    ],
)
def test_a_lack_of_memory_is_one_line(action, words):
    with (
        pytest.raises(TrainingError, match="not enough memory for training") as error,
        enough_memory("training", "less"),
    ):
        action()
    assert words in str(error.value)
    with pytest.raises(RuntimeError, match="something else"), enough_memory("training", "less"):
        raise RuntimeError("something else")


def test_a_run_that_lacks_memory_goes_on_later(monkeypatch, capsys):
    evaluate, calls = Evaluation.after, [0]

    def hungry(*given):
        calls[0] += 1
        if calls[0] == 3:
            torch.empty(1 << 50)
        return evaluate(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "after", hungry)
        assert start("run", *options("zoo")) == 1
    assert "a smaller batch or model in --hp_config needs less" in capsys.readouterr().err
    assert start("run", "--resume") == 0


def test_a_clock_that_jumps_changes_nothing(monkeypatch):
    assert start("whole", *options("zoo")) == 0
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    assert start("run", *options("zoo")) == 0
    assert results("run") == results("whole")


def test_the_signal_of_a_queue_stops_a_run_that_is_resumed_later(monkeypatch, capsys):
    """Slurm sends SIGUSR1 if it is asked to warn a job before its end."""
    assert start("whole", *options("zoo")) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 14, signal.SIGUSR1)
        assert start("run", *options("zoo")) == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1; resume with: " in capsys.readouterr().err
    assert start("run", "--resume") == 0
    assert results("run") == results("whole")


def test_a_run_that_is_stopped_before_it_begins_is_not_to_be_resumed(monkeypatch, capsys):
    def stopped(*given):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("training.features.build_stream", stopped)
    assert start("run", *options("zoo")) == 143
    assert capsys.readouterr().err == "modelzoo.py: stopped by SIGTERM; repeat the command\n"
    assert not Path("run").exists()


def test_the_second_signal_stops_at_once(monkeypatch, capsys):
    def twice(self, *, epoch_ends=False):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return False

    with monkeypatch.context() as patch:
        patch.setattr("records.checkpoints.RunCheckpoints.due", twice)
        assert start("run", *options("zoo")) == 130
    assert "stopped by SIGINT" in capsys.readouterr().err
    assert start("run", "--resume") == 0


def test_a_run_killed_before_it_has_begun_is_begun(monkeypatch):
    for count in (1, 2):
        shutil.rmtree("run", ignore_errors=True)
        with monkeypatch.context() as patch:
            kill_at_write(patch, count)
            with pytest.raises(Killed):
                start("run", *options("zoo"))
        assert start("run", *options("zoo"), "--resume") == 0


# Its parts.


@st.composite
def trees(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    values = draw(st.integers(0, 2**16))
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(values))
    tensor = tensor.permute(*draw(st.permutations(range(len(shape))))) if shape else tensor
    kind = draw(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8]))
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.just(tensor.to(kind))
    )
    keys = st.one_of(st.integers(), st.text(), st.tuples(st.integers(), st.text()))
    return draw(
        st.recursive(
            leaf,
            lambda part: st.one_of(
                st.lists(part, max_size=3),
                st.lists(part, max_size=3).map(tuple),
                st.dictionaries(keys, part, max_size=3),
            ),
        )
    )


def alike(one, other):
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and torch.equal(one, other) and (one.numel() == 0 or one.stride() == other.stride())
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@settings(max_examples=60, deadline=None)
@given(trees())
def test_a_tree_comes_back_as_it_was(tree):
    assert alike(tree, from_bytes(to_bytes(tree), CPU))


def test_a_tree_has_no_place_for_anything_else():
    with pytest.raises(TypeError, match="object cannot be part of a state"):
        to_bytes({"x": [object()]})
    for content in (b"", b"x" * 100, to_bytes([1])[:-1], b"\xff" * 8 + b"{}"):
        with pytest.raises(ValueError, match="not a saved state"):
            from_bytes(content, CPU)


@pytest.mark.parametrize("count", [0, 1, 3, 63, 64, 65, 200])
def test_skipped_replays_are_those_that_would_have_come(count):
    stream = toy_stream(2)

    def made():
        return [
            Replays(Mixture([(task.id, task.train_eval)]), stream.spec, 3, generator(0, task.id), augment=True)
            for task in stream.tasks
        ]

    for asked, skipping in zip(made(), made(), strict=True):
        for _ in range(count):
            next(asked)
        skipping.skip(count)
        for _ in range(70):
            one, other = next(asked), next(skipping)
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets)


def test_the_configuration_of_a_run_is_read_back_as_it_was():
    assert start("run", *options("zoo")) == 0
    plain = yaml.safe_load(Path("run/config.yaml").read_text())
    for key, value, words in [
        ("data", {**plain["data"], "samples": "8"}, "data: samples is '8'"),
        ("seed", -1, "seed is -1"), ("continual", "yes", "continual is 'yes'"),
        ("data", [], "data must hold"), ("method", "zo", "unknown method 'zo'"), ("method", 3, "method is 3"),
        ("hp", {"lr": "x"}, "hp: lr is 'x'"), ("settings", {"a": 1}, "unknown key 'a'"),
    ]:  # fmt: skip
        Path("other").mkdir()
        Path("other/config.yaml").write_text(yaml.safe_dump({**plain, key: value}))
        with pytest.raises(UserError, match=re.escape(words)):
            modelzoo.run(modelzoo.parse(["--resume", "--run_dir", "other"]))
        shutil.rmtree("other")
