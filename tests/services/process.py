"""Runs a program that a test or benchmark needs, in the foreground, and ends it by its own process id.

Promises: its output lands in `<directory>/<name>.log`; one that ends early fails the wait with the end of that log;
leaving the context ends it, kindly first.
"""

import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class ServiceProcess:
    """One running program; start it by making it, end it with stop() or by leaving the context."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=directory,
                pass_fds=pass_fds,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, timeout_seconds: float = 15) -> int:
        """End it with SIGTERM, with SIGKILL if it does not listen; its exit status."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it with SIGKILL, at whatever instruction it is; its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        return self._process.wait()

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_seconds: float = 45) -> None:
        """Poll until `ready()`; AssertionError with the end of the log if it ends or takes too long."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                state = "still running" if status is None else f"exit {status}"
                raise AssertionError(f"{self.name}: no {what} ({state}); its log ends:\n{self.tail()}")
            time.sleep(0.01)

    def until_ready(self, ready: Callable[[], bool], what: str) -> Self:
        """wait_until() for a process just started: itself, or it is ended and AssertionError says why."""
        try:
            self.wait_until(ready, what)
        except AssertionError:
            self.kill()
            raise
        return self

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


_given: set[int] = set()
_chance = random.SystemRandom()


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago, for programs that cannot report the kernel's choice.

    From below those that the kernel gives to connections, by chance: neither a connection nor another test process
    takes it meanwhile. Never the same twice: the first may not be in use yet when the next is chosen.
    """
    highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1000):
        port = _chance.randrange(10_000, highest)
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise RuntimeError(f"no free port between 10000 and {highest}")


def listens(port: int) -> Callable[[], bool]:
    """A check for wait_until(): something listens on the IPv4 port; asks the kernel, so that no connection is made."""
    wanted = f":{port:04X}"

    def check() -> bool:
        rows = (line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines())
        return any(row[1].endswith(wanted) and row[3] == "0A" for row in rows)

    return check
