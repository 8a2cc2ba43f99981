"""A folder for one process at a time."""

from __future__ import annotations

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
    """The folder, made if it is not there, for one process at a time; yields the descriptor that holds it.

    The lock is the kernel's and ends with the processes that have the descriptor, however they end. The file
    says who took it, and is removed at the end. One that another machine has left is not taken over: its
    processes cannot be asked for, and not every shared disk shares its locks.

    Args:
        option: opens error messages.

    Raises:
        UserError: another process has it, or it cannot be written.
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
        with contextlib.suppress(OSError):  # on a full disk the lock holds as well, without a name
            os.ftruncate(lock, 0)
            me = {"host": socket.gethostname(), "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            os.pwrite(lock, json.dumps(me).encode(), 0)
        try:
            yield lock
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
                if made:
                    folder.rmdir()  # nothing was put there
    finally:
        os.close(lock)


def _opened(path: Path, option: str) -> int:
    """The lock file, locked; the one that has the name, not one that was removed while this process waited for it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except BlockingIOError:
            holder = _holder(lock)
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


def _told(holder: dict[str, object]) -> str:
    """Who has it, in words."""
    if not holder:
        return "another process"
    return "host {host}, process {process}, since {since}".format(
        **dict.fromkeys(("host", "process", "since"), "?") | holder
    )
