"""One process per seed: who trains or writes in a seed's folder holds a lock of the operating system meanwhile."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

from tailwise import checks, ranks

LOCKS = ".seed-"  # what the names of lock files begin with
_HELD: set[int] = set()


class TakenError(checks.InputError):
    """Another process has this seed."""


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Hold a seed's folder, finished or not, for the length of the block; the folder around it is there.

    The main process locks a hidden file beside it. The system lets go of the lock when that process ends, however it
    ends, so nothing is to be cleaned up after a kill. Where there are no such locks, nothing is held.

    Raises:
        TakenError: in every process, if another training or `adjust` holds it.
    """
    file, handle, taken = path.with_name(f".{path.name}.lock"), None, False
    try:
        if ranks.is_main():
            try:
                handle = _locked(file)
            except BlockingIOError:
                taken = True
        if ranks.agree(taken):
            raise TakenError(
                f"{path}: expected no other process at work here, but one is training or writing here; wait until it "
                "has ended, or train elsewhere (--out)"
            )
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                file.unlink()  # before it is let go: the next one may have a file of its own by then
            _HELD.discard(handle)
            os.close(handle)


def _locked(file: Path) -> int | None:
    """The open file, with a lock on it; None where files cannot be locked, or not be written.

    Raises:
        BlockingIOError: another has it.
    """
    if sys.platform == "win32":
        return None
    for _ in range(10):
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None  # whoever writes here will say why it cannot
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            still_there = os.path.samestat(os.fstat(handle), file.stat())
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise
            if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
                continue
            file.unlink(missing_ok=True)  # a file system without locks
            return None
        if still_there:
            _HELD.add(handle)
            return handle
        os.close(handle)  # who had it before took the file away just now: once more
    return None


def _forget() -> None:
    """Let a forked process, such as one that reads images, not hold what is its parent's."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)
