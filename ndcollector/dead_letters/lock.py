"""Whose the dead letters of a state directory are: the running collector's, or a command's while none runs.

Promises: one at a time; the kernel lets go when the process dies. Refuses: waiting.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ndcollector.pki.store import adopt

FILE = ".lock"


class LettersLocked(Exception):
    """Another process has them."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Have them inside the block; raises LettersLocked, OSError."""
    descriptor = take(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def take(directory: Path) -> int:
    """Have them until the descriptor is closed; raises LettersLocked, OSError."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    descriptor = os.open(directory / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        adopt(descriptor, directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LettersLocked(f"{directory}: another process is at work there") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
