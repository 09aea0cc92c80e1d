"""Runs the real `ndcollector` or `ndagent` on a machine whose disk and wall clock fail on command.

    faulty_daemon.py CONTROL FAULTS PROGRAM ARGUMENT…      PROGRAM is ndcollector or ndagent, FAULTS is JSON

The faults go in below the product, at its own seam (ndagent/core/spool/files.py), so nothing in the product knows of
them; those of the command line hold from the first instruction, later ones come over the unix socket CONTROL, one JSON
object a connection, answered "ok". Fields (what is left out is as on a good machine):

    no_space        true: nothing grows; a write that would gets half of it done or ENOSPC, and no new file is made
    sync_errors     chance that fdatasync or an fsync of a directory fails with EIO
    write_errors    chance that a write fails with EIO
    sync_seconds    how much longer each fdatasync takes
    clock_seconds   how far the wall clock is off; the monotonic clock never jumps

Refuses: datetime.now and OpenSSL's look at the clock; they see the real one. Reads that fail: what the disk cannot read
is quarantined, counted and not delivered, which is right and would spoil every account (see test_spool_disasters.py).
"""

import errno
import json
import os
import random
import runpy
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAULTS = ("no_space", "sync_errors", "write_errors", "sync_seconds", "clock_seconds")


class Machine:
    """What is wrong with it now. Read by many threads, replaced whole."""

    def __init__(self, faults: dict[str, Any]) -> None:
        self.faults: dict[str, Any] = {}
        self._random = random.Random(os.getpid())
        self.replace(faults)

    def replace(self, faults: dict[str, Any]) -> None:
        """These and no others; raises ValueError for one that is not known."""
        unknown = faults.keys() - set(FAULTS)
        if unknown:
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
        self.faults = faults

    def maybe_fail(self, kind: str, what: object) -> None:
        """EIO with the chance that is set."""
        if self._random.random() < self.faults.get(kind, 0):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(what))

    def allowed(self, fd: int, size: int, offset: int) -> int:
        """How many bytes of a write get done; raises ENOSPC."""
        if not self.faults.get("no_space") or offset + size <= os.fstat(fd).st_size:
            return size
        if size > 1 and self._random.random() < 0.5:
            return size // 2
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def break_disk(machine: Machine) -> None:
    """Every OsFiles from now on is on this machine."""
    from ndagent.core.spool.files import OsFiles  # late: defaults such as `clock=time.time` are bound by this import

    real_create, real_writev = OsFiles.create, OsFiles.writev
    real_fdatasync, real_fsync_dir = OsFiles.fdatasync, OsFiles.fsync_dir

    def create(self: OsFiles, path: Path) -> int:
        if machine.faults.get("no_space") and not path.exists():  # a kernel looks before it makes: EEXIST comes first
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real_create(self, path)

    def writev(self: OsFiles, fd: int, pieces: Sequence[bytes], offset: int) -> int:
        machine.maybe_fail("write_errors", fd)
        size = sum(map(len, pieces))
        allowed = machine.allowed(fd, size, offset)
        return real_writev(self, fd, pieces if allowed == size else [b"".join(pieces)[:allowed]], offset)

    def fdatasync(self: OsFiles, fd: int) -> None:
        time.sleep(machine.faults.get("sync_seconds", 0))
        machine.maybe_fail("sync_errors", fd)
        real_fdatasync(self, fd)

    def fsync_dir(self: OsFiles, path: Path) -> None:
        machine.maybe_fail("sync_errors", path)
        real_fsync_dir(self, path)

    for method in (create, writev, fdatasync, fsync_dir):
        setattr(OsFiles, method.__name__, method)


def break_clock(machine: Machine) -> None:
    """The wall clock as the product asks for it; whoever asks OpenSSL, or datetime, sees the real one."""
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + machine.faults.get("clock_seconds", 0)
    time.time_ns = lambda: real_time_ns() + int(machine.faults.get("clock_seconds", 0) * 1_000_000_000)


def serve(machine: Machine, path: Path) -> None:
    """Take orders in a thread of its own, for as long as the process lives."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def answer() -> None:
        while True:
            caller, _ = listening.accept()
            with caller, caller.makefile("rwb") as stream:
                try:
                    machine.replace(json.loads(stream.readline()))
                    stream.write(b"ok\n")
                except (ValueError, OSError) as error:
                    stream.write(f"{error}\n".encode())

    threading.Thread(target=answer, name="faults", daemon=True).start()


def order(path: Path, faults: dict[str, Any]) -> None:
    """The caller's end: let the daemon behind this socket have these faults; raises OSError if none runs."""
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.settimeout(30)
        daemon.connect(str(path))
        daemon.sendall(json.dumps(faults).encode() + b"\n")
        answer = daemon.makefile("rb").readline()
    if answer != b"ok\n":
        raise OSError(f"the daemon did not take the faults: {answer.decode().strip() or 'it ended'}")


def main() -> None:
    """See the module."""
    control, faults, program, *arguments = sys.argv[1:]
    machine = Machine(json.loads(faults))
    break_clock(machine)  # before anything keeps a reference to the old one
    break_disk(machine)
    serve(machine, Path(control))
    sys.argv = [program, *arguments]
    runpy.run_module(f"{program}.__main__", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
