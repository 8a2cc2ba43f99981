"""locked: a folder that one process at a time may use."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from utils.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, option: str = "") -> Iterator[int]:
    """Lock a folder, which is made if it does not exist; yields the descriptor of the lock file.

    The kernel releases the lock when the processes that have the descriptor end, however they end. The lock file names
    its owner, and is removed at the end. A lock file of another machine is refused: its processes cannot be seen from
    here, and not every shared disk shares its locks.

    Args:
        option: opens error messages.

    Raises:
        UserError: another process has the folder, or it cannot be written.
    """
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = _opened(folder / LOCK, option)
    except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
        raise UserError(f"{option}{folder} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    try:
        left = _holder(lock)
        if left.get("host", socket.gethostname()) != socket.gethostname():
            raise UserError(f"{option}{folder} is in use by {_told(left)}; if that has ended, remove {folder / LOCK}")
        with contextlib.suppress(OSError):  # on a full disk the lock holds without naming its owner
            os.ftruncate(lock, 0)
            me = {"host": socket.gethostname(), "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            os.pwrite(lock, json.dumps(me).encode(), 0)
        try:
            yield lock
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
                if made:
                    folder.rmdir()  # unless it is in use
    finally:
        os.close(lock)


def _opened(path: Path, option: str) -> int:
    """The lock file, locked; again if its last owner has removed it between the opening and the locking."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except BlockingIOError:
            holder = _holder(lock) | _living(lock)
            os.close(lock)
            raise UserError(
                f"{option}{path.parent} is in use by {_told(holder)}; wait for it, or name another folder"
            ) from None
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _holder(lock: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(lock, 4096, 0))
        return content if isinstance(content, dict) else {}
    except (ValueError, RecursionError):
        return {}


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
    if not holder:
        return "another process"
    return ", ".join(f"{key} {holder.get(key, '?')}" for key in ("host", "process", "since"))
