"""A Debian of its own, booted: systemd is its first process, in a container whose network is a loopback.

Promises: `boot()` returns once systemd says that the machine is up; `run` is a command of its root; nothing of the host
but kernel and clock is in there. Ended by its own process id. Refuses: limits on memory (cgroups are not delegated to
it) and downloading: what it needs besides our packages is in its root file system.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ndpackages.root import Root, clean_root, remove_tree

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build/packages/cache"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "adduser", "init-system-helpers", "ca-certificates", "tzdata", "openssl")
_BOOT_SECONDS = 120.0
_LEAST_SECONDS = 60.0  # for a condition, on a machine that many tests share


def _is_systemd(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "systemd\n"
    except OSError:  # it has just ended
        return False


class DebianMachine:
    """One machine; use it as a context."""

    def __init__(self, suite: str, directory: Path) -> None:
        self.suite = suite
        self.root: Root = clean_root(suite, packages=PACKAGES, cache=CACHE, target=directory / f"{suite}-root")
        self._log = directory / f"{suite}-console.log"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    @property
    def path(self) -> Path:
        """Its root directory, as the host sees it."""
        return self.root.path

    def boot(self) -> Self:
        """Start it. AssertionError with its console where it does not come up."""
        (self.path / "etc/hosts").write_text("127.0.0.1 localhost collector-1\n")
        name = f"nd{os.getpid()}{self.suite}"
        command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.path}", f"--machine={name}"]
        command += ["--register=no", "--keep-unit", "--private-network", "--hostname=collector-1"]
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_for(self._is_up, "a booted system", seconds=_BOOT_SECONDS)
        self._keep_one_boot_id()
        return self

    def _is_up(self) -> bool:
        """The first process is looked for each time: nspawn has another child before it, which ends."""
        self._leader = int(self._find_leader() or 0)
        said = self.run("systemctl", "is-system-running", check=False) if self._leader else ""
        return said.strip() in {"running", "degraded"}

    def _keep_one_boot_id(self) -> None:
        """A unit with a /proc of its own (ProtectKernelTunables=) sees the host's boot id, not the container's.

        journalctl --follow shows this boot only, so that there it would show nothing. On a machine both are one.
        """
        self.run("umount", "/proc/sys/kernel/random/boot_id", check=False)
        self.run("systemctl", "restart", "systemd-journald")

    def _find_leader(self) -> str:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, self._log.read_text(errors="replace")
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        # Its first child is one that prepares the container, and ends.
        return next((child for child in children if _is_systemd(child)), "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._nspawn is not None and self._nspawn.poll() is None:
            self.run("systemctl", "poweroff", check=False)
            try:
                self._nspawn.wait(60)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        remove_tree(self.path)

    def _entering(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--", *command]

    def run(self, *command: str, check: bool = True, environ: Mapping[str, str] | None = None) -> str:
        """What it says on both channels; AssertionError with that, where `check` and it fails."""
        done = subprocess.run(
            self._entering(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", check=False, timeout=600,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
                "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", **(environ or {}),
            },
        )  # fmt: skip
        assert not (check and done.returncode), f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """A shell script in it, in the background; the caller waits for it."""
        return subprocess.Popen(self._entering(("sh", "-c", script)), stdin=subprocess.DEVNULL)

    def install(self, *packages: Path, environ: Mapping[str, str] | None = None) -> str:
        """By apt, as an administrator would, without anything from elsewhere."""
        inside = []
        for package in packages:
            shutil.copy(package, self.path / "root")
            inside.append(f"/root/{package.name}")
        return self.run("apt-get", "install", "-y", "--no-install-recommends", *inside, environ=environ)

    def main_pid(self, unit: str) -> int:
        """The unit's main process as the machine numbers it, 0 if it does not run."""
        return int(self.run("systemctl", "show", "-P", "MainPID", unit).strip() or 0)

    def is_active(self, unit: str) -> bool:
        """Whether it runs and has said that it is ready."""
        return self.run("systemctl", "is-active", unit, check=False).strip() == "active"

    def wait_for(self, condition: Callable[[], Any], what: str, *, seconds: float = _LEAST_SECONDS) -> Any:
        """What the condition returns once it holds; AssertionError with the daemons' last words where it does not."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                said = self.run("journalctl", "--no-pager", "-n", "60", check=False) if self._leader else ""
                raise AssertionError(f"{what} did not come true in {seconds:g} s\n{said}")
            time.sleep(0.1)
        return found
