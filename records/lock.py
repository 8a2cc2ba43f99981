"""locked: a folder that one process at a time may use."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from utils.errors import UserError, one_line

LOCK = ".lock"
_HERE = socket.gethostname()
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
            lock = _opened(folder / LOCK, option, closing)
        except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{option}{folder} cannot be written: {reason}") from None
        with contextlib.suppress(OSError):  # on a full disk the lock holds without naming its owner
            os.ftruncate(lock, 0)
            me = {"host": _HERE, "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            os.pwrite(lock, json.dumps(me).encode(), 0)
        beat = threading.Thread(target=_beat, args=(folder, lock, ended), daemon=True)
        beat.start()
        try:
            yield lock
        finally:
            ended.set()
            beat.join()
            with contextlib.suppress(OSError):
                if not _other_host(lock):
                    (folder / LOCK).unlink()
                if made:
                    folder.rmdir()  # unless it is in use


def _beat(folder: Path, lock: int, ended: threading.Event) -> None:
    """Touch the lock file until `ended`; end the process if another host has taken the lock over meanwhile."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            if other := _other_host(lock):
                taken = f"{folder} was taken over by {other}, as this process had stopped"
                print(one_line(taken), file=sys.stderr, flush=True)
                os._exit(1)
            os.utime(lock)


def _opened(path: Path, option: str, closing: contextlib.ExitStack) -> int:
    """The lock file, locked; again if its last owner has removed it between the opening and the locking."""
    used = f"{option}{path.parent} is in use by"
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        closing.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _told(_holder(lock) | _living(lock))
            raise UserError(f"{used} {holder}; wait for it, or name another folder") from None
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            break
    if other := _other_host(lock):
        with tempfile.TemporaryFile(dir=path.parent) as file:  # the time of the disk: clocks of two hosts may differ
            silent = max(0.0, os.fstat(file.fileno()).st_mtime - os.fstat(lock).st_mtime)
        if silent < DEAD:
            raise UserError(
                f"{used} {other}, last seen {silent:.0f} s ago; if that has ended, try again {DEAD / 60:.0f} minutes "
                f"after it was last seen, or remove {path}"
            )
    return lock


def _holder(lock: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(lock, 4096, 0))
        return content if isinstance(content, dict) else {}
    except (ValueError, RecursionError):
        return {}


def _other_host(lock: int) -> str:
    """The owner of a lock file, for people, if it is on another host, else an empty text."""
    return "" if (holder := _holder(lock)).get("host", _HERE) == _HERE else _told(holder)


def _living(lock: int) -> dict[str, object]:
    """The processes that have the lock file open, as Linux tells: those that the named owner started may outlive it."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if os.readlink(entry) == os.readlink(f"/proc/self/fd/{lock}"):  # noqa: PTH115
                found.add(int(entry.parts[2]))
    found -= {os.getpid()}
    return {"process": ", ".join(map(str, sorted(found)))} if found else {}


def _told(holder: dict[str, object]) -> str:
    """The owner of a lock, for people."""
    known = [f"{key} {holder[key]}" for key in ("host", "process", "since") if key in holder]
    return ", ".join(known) or "another process"
