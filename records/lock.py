"""locked: a folder that one process at a time may use; holder: which one does."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from utils.errors import UserError, one_line

LOCK = ".lock"
IN_USE = "is in use by"  # what the refusal of a folder says of it
HERE = socket.gethostname()
BEAT = 30.0  # seconds between two touches of the lock file by its owner
DEAD = 600.0  # seconds without one, after which another host may take the lock over


@contextlib.contextmanager
def locked(folder: Path, option: str = "") -> Iterator[int]:
    """Lock a folder, which is made if it does not exist; yields the descriptor of the lock file, which names its owner.

    The kernel releases the lock when the processes that have the descriptor end, however they end. Not every shared
    disk shares its locks, and the processes of another host cannot be seen from here: such a lock is refused until its
    owner has not touched the file for DEAD seconds. Error messages begin with `option`.
    """
    ended = threading.Event()
    with contextlib.ExitStack() as closing:
        try:
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            lock, path = _opened(folder / LOCK, option, closing), (folder / LOCK).absolute()
        except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{option}{folder} cannot be written: {reason}") from None
        me = {"host": HERE, "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        with contextlib.suppress(OSError):  # on a full disk the lock holds without naming its owner
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(me).encode(), 0)
        beat = threading.Thread(target=_beat, args=(path, lock, me, ended), daemon=True)
        try:
            beat.start()
            yield lock
        finally:
            ended.set()
            if beat.is_alive():
                beat.join()
            with contextlib.suppress(OSError):
                if not _taken(path, me):
                    path.unlink()
                if made:
                    folder.rmdir()  # unless it is in use


def _beat(path: Path, lock: int, me: dict[str, object], ended: threading.Event) -> None:
    """Touch the lock file until `ended`; end the process if the lock is no longer that of `me`."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # the disk may answer again
            if taken := _taken(path, me):
                try:
                    print(one_line(f"{path.parent} {taken}"), file=sys.stderr, flush=True)
                finally:
                    os._exit(1)
            os.utime(lock)


def _taken(path: Path, me: dict[str, object]) -> str:
    """What has become of the lock file, for people, if it is no longer that of `me`: a host may have slept for long."""
    try:
        # By its name: it may have been removed and made again, and a network disk then shows the old content.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            holder = _holder(file.fileno())
    except FileNotFoundError:
        return f"is not locked any more, as {path} was removed"
    return "" if holder in ({}, me) else f"was taken over by {_told(holder)}, as this process had stopped"


def _opened(path: Path, option: str, closing: contextlib.ExitStack) -> int:
    """The lock file, locked; again if its last owner has removed it between the opening and the locking."""
    used = f"{option}{path.parent} {IN_USE}"
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        closing.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _told(_holder(lock) | _living(lock))
            raise UserError(f"{used} {owner}; wait for it, or name another folder") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                break
    if (holder := _holder(lock)).get("host", HERE) != HERE:
        with tempfile.TemporaryFile(dir=path.parent) as file:  # the time of the disk: clocks of two hosts may differ
            silent = max(0.0, os.fstat(file.fileno()).st_mtime - os.fstat(lock).st_mtime)
        if silent < DEAD:
            advice = f"if that has ended, try again {DEAD / 60:.0f} minutes after it was last seen, or remove {path}"
            raise UserError(f"{used} {_told(holder)}, last seen {silent:.0f} s ago; {advice}")
    return lock


def holder(folder: Path) -> dict[str, object]:
    """The living process that has locked a folder, by host, process and since; empty if there is none.

    A process that cannot be seen, as it is one of another host, counts as living until it has not touched the lock file
    for DEAD seconds.
    """
    path = folder / LOCK
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            owner, touched = _holder(file.fileno()), os.fstat(file.fileno()).st_mtime
    except OSError:  # there is none
        return {}
    lives = _has_open(owner.get("process"), path) if owner.get("host", HERE) == HERE else None
    if lives is None:
        lives = time.time() - touched < DEAD
    return owner if lives else {}


def _has_open(process: object, path: Path) -> bool | None:
    """Whether a process of this machine lives and has this file open; None if it may live and the rest is unknown."""
    if type(process) is not int or not 0 < process < 2**31:  # damaged; a negative number would be a group of processes
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return None
    files = Path(f"/proc/{process}/fd")
    if not files.exists():  # no Linux; a process that has ended meanwhile is asked about again
        return None
    real = os.path.realpath(path)
    with contextlib.suppress(OSError):
        return real in map(os.path.realpath, files.iterdir())
    return False


def _holder(lock: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(lock, 4096, 0))
        return content if isinstance(content, dict) else {}
    except (ValueError, RecursionError):
        return {}


def _living(lock: int) -> dict[str, object]:
    """The processes that have the lock file open, as Linux tells: those that the named owner started may outlive it."""
    found, path = set(), os.path.realpath(f"/proc/self/fd/{lock}")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if path in map(os.path.realpath, (process / "fd").iterdir()):
                found.add(int(process.name))
    found -= {os.getpid()}
    return {"process": ", ".join(map(str, sorted(found)))} if found else {}


def _told(holder: dict[str, object]) -> str:
    """The owner of a lock, for people."""
    known = [f"{key} {holder[key]}" for key in ("host", "process", "since") if key in holder]
    return ", ".join(known) or "another process"
