"""A second machine on this one: a network namespace behind a veth pair that can be cut, lossy or slow.

    with FarNetwork() as far:                       # near: this process's own namespace
        subprocess.run([*far.prefix, "curl", …])    # a program over there; reaches us at far.near_address
        far.cut(); far.lose(percent=10); far.narrow(bytes_per_second=50_000); far.heal()

Promises: real TCP over a real link, so that retransmission, back-off and half-open connections are the kernel's own;
the namespace is held by a process of ours and gone, with the link, when the context is left. `cut` takes the far end
down: the near one gets no carrier and no error. Loss is drawn by nftables for each packet, in both directions (this
needs no qdisc that a small kernel has not: netem is missing in many); `narrow` is tbf.
Needs root. The near end lies in `near_pid`'s namespace; better one that is private, too, so that the host sees nothing.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from services import fetch

_NEAR, _FAR = "10.77.0.1", "10.77.0.2"
_START_SECONDS = 10.0


class Namespace:
    """A network namespace that a sleeping process holds, with its loopback up."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.pid = self._holder.pid
        try:
            self._await_own()
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    @property
    def prefix(self) -> list[str]:
        """What to put in front of a command so that it runs there, under its own process id."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    def run(self, *command: str | Path, **environment: str) -> None:
        """A command in it; CalledProcessError if it fails."""
        subprocess.run([*self.prefix, *command], check=True, capture_output=True, env={**os.environ, **environment})

    def close(self) -> None:
        """Give it up; it is gone with its last process."""
        self._holder.kill()
        self._holder.wait()

    def _await_own(self) -> None:
        """`unshare` has done its work once the holder's namespace is not ours."""
        ours, deadline = Path("/proc/self/ns/net").readlink(), time.monotonic() + _START_SECONDS
        while Path(f"/proc/{self.pid}/ns/net").readlink() == ours:
            if time.monotonic() > deadline or self._holder.poll() is not None:
                raise OSError("no network namespace of its own: needs root and unshare(1)")
            time.sleep(0.005)


class FarNetwork:
    """See the module. Raises OSError, ServiceMissingError where it cannot be had."""

    near_address = _NEAR
    far_address = _FAR

    def __init__(self, *, near_pid: int | None = None) -> None:
        self._nft = fetch.ensure(fetch.NFTABLES)
        self._near_pid = near_pid or os.getpid()
        self._far: Namespace | None = None

    @property
    def prefix(self) -> Sequence[str]:
        """See Namespace.prefix."""
        return self._there.prefix

    def cut(self) -> None:
        """The cable is out."""
        self._there.run("ip", "link", "set", "far", "down")

    def lose(self, *, percent: int) -> None:
        """Each packet, either way, is lost with this chance."""
        self._loss(f"table inet loss {{ {_drops('input', percent)} {_drops('output', percent)} }}")

    def narrow(self, *, bytes_per_second: int) -> None:
        """What is sent from there goes no faster; what does not fit into a short queue is lost."""
        rate, burst = f"{bytes_per_second}bps", str(max(bytes_per_second // 10, 4000))
        self._there.run(
            "tc", "qdisc", "replace", "dev", "far", "root", "tbf", "rate", rate, "burst", burst, "latency", "50ms"
        )

    def heal(self) -> None:
        """A good cable again."""
        there = self._there
        there.run("ip", "link", "set", "far", "up")
        self._loss("table inet loss; delete table inet loss")
        subprocess.run(
            [*there.prefix, "tc", "qdisc", "del", "dev", "far", "root"], check=False, capture_output=True
        )  # there may be none

    def __enter__(self) -> Self:
        self._far = Namespace()
        try:
            self._lay_cable(self._far)
        except BaseException:
            self._far.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The kernel takes a namespace down when it has time; the link is to be gone now.
        subprocess.run([*self._near, "ip", "link", "del", "near"], check=False, capture_output=True)
        self._there.close()

    @property
    def _near(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._near_pid}/ns/net", "--"]

    @property
    def _there(self) -> Namespace:
        assert self._far is not None, "not entered"
        return self._far

    def _lay_cable(self, far: Namespace) -> None:
        ends = ["near", "type", "veth", "peer", "name", "far", "netns", str(far.pid)]
        for command in (
            ["ip", "link", "add", *ends],
            ["ip", "address", "add", f"{_NEAR}/24", "dev", "near"],
            ["ip", "link", "set", "near", "up"],
        ):
            subprocess.run([*self._near, *command], check=True, capture_output=True)
        far.run("ip", "address", "add", f"{_FAR}/24", "dev", "far")
        far.run("ip", "link", "set", "far", "up")

    def _loss(self, rules: str) -> None:
        libraries = self._nft.environment()["LD_LIBRARY_PATH"]
        self._there.run(self._nft.path("usr/sbin/nft"), rules, LD_LIBRARY_PATH=libraries)


def _drops(hook: str, percent: int) -> str:
    rule = f"numgen random mod 100 < {percent} drop"
    return f"chain {hook} {{ type filter hook {hook} priority 0; {rule}; }};"
