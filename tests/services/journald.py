"""A systemd-journald of the tests' own: the real one, in a private mount namespace, beside or without the host's.

Promises: its files and sockets lie below the directory it is given (`/run`, `/etc` and `/var/log` are its own); nothing
of the host is read or written; leaving the context ends it. Entries are sent as sd_journal_send(3) does, in journald's
native protocol. Refuses: the kernel's messages, audit.
"""

import os
import shutil
import signal
import socket
import struct
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from services import fetch
from services.need import need
from services.process import ServiceProcess

MACHINE_ID = "0123456789abcdef0123456789abcdef"
_NAMESPACE = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/log/journal /run/systemd/journal
mount --bind "$1/run" /run/log/journal
mount --bind "$1/socket" /run/systemd/journal
mount -t tmpfs tmpfs /var/log
if [ -d "$1/var" ]; then mkdir /var/log/journal; mount --bind "$1/var" /var/log/journal; fi
mount --bind "$1/etc" /etc
if [ -e "$1/boot_id" ]; then mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id; fi
exec "$2"
"""
_CONFIG = "[Journal]\nReadKMsg=no\nAudit=no\nForwardToSyslog=no\nSyncIntervalSec=0\n"

Value = str | bytes


class Journal:
    """One journald; `settings` are lines of journald.conf. `persistent`: it has a /var/log/journal to flush to."""

    def __init__(self, directory: Path, *, settings: Iterable[str] = (), persistent: bool = False) -> None:
        self._root = directory
        for name in ("run", "socket", "etc", *(["var"] if persistent else [])):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "etc/systemd").mkdir(exist_ok=True)
        (directory / "etc/machine-id").write_text(f"{MACHINE_ID}\n")
        shutil.copy("/etc/passwd", directory / "etc/passwd")
        lines = "".join(f"{line}\n" for line in ("RateLimitBurst=0", *settings))
        (directory / "etc/systemd/journald.conf").write_text(_CONFIG + lines)
        self._socket: socket.socket | None = None

    @property
    def volatile(self) -> Path:
        """What is /run/log/journal to it: for the input's `directory`."""
        return self._root / "run"

    @property
    def persistent(self) -> Path:
        """What is /var/log/journal to it."""
        return self._root / "var"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, or start it again."""
        service = fetch.JOURNALD
        program = service.path("lib/systemd/systemd-journald")
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", _NAMESPACE, "sh", self._root, program]
        (self._root / "socket/socket").unlink(missing_ok=True)
        environment = service.environment()
        self._process = ServiceProcess("journald", command, directory=self._root, environment=environment)
        self._process.until_ready((self._root / "socket/socket").exists, "socket")
        self._socket = None

    def stop(self) -> None:
        """End it and hang up."""
        if self._socket is not None:
            self._socket.close()
        self._process.stop()

    def reboot(self) -> None:
        """Start it again as in another boot of the machine."""
        self.stop()
        (self._root / "boot_id").write_text(f"{uuid.uuid4()}\n")
        self.start()

    def send(self, fields: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> None:
        """One entry; a name may come several times."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            place = os.open(self._root / "socket", os.O_PATH)
            self._socket.connect(f"/proc/self/fd/{place}/socket")  # a path below pytest's is too long for sun_path
            os.close(place)
        pairs = fields.items() if isinstance(fields, Mapping) else fields
        self._socket.send(b"".join(_field(name, value) for name, value in pairs))

    def wait_for(self, message: str) -> None:
        """Until this is its newest entry's message: all that was sent before is in the files."""
        show = ["journalctl", f"--directory={self.volatile}", "--lines=1", "--output=cat"]
        self._process.wait_until(
            lambda: subprocess.run(show, capture_output=True, text=True, check=False).stdout == f"{message}\n",
            f"entry {message!r}",
        )

    def rotate(self) -> None:
        """Move the files aside and begin new ones (`journalctl --rotate`), as the next entry shows."""
        os.kill(self._process.pid, signal.SIGUSR2)

    def flush(self) -> None:
        """Move the entries from /run to /var (`journalctl --flush`)."""
        os.kill(self._process.pid, signal.SIGUSR1)
        self._process.wait_until((self._root / "socket/flushed").exists, "flush")


def _field(name: str, value: Value) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    if b"\n" not in data:
        return b"%b=%b\n" % (name.encode(), data)
    return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(data)), data)


def need_journald(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip where there is none or no namespace; put its journalctl, with its libraries, first in PATH."""
    need(fetch.JOURNALD)
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"journald: no private mount namespace here: {probe.stderr.strip()}")
    programs = directory / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    libraries = fetch.JOURNALD.environment()["LD_LIBRARY_PATH"]
    wrapper = programs / "journalctl"
    wrapper.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{fetch.JOURNALD.path("bin/journalctl")}" "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
