"""What tests of `tap` and `top` share: an open tap, a command on a terminal, and waiting for taps to open and close."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import orjson
from collector_process import ROOT
from collector_site import Site

from ndcollector.admin_client import AdminClient
from ndcollector.top_command import fetch


def socket_of(site: Site) -> Path:
    """The admin socket of the site's collector."""
    return site.collector.directory / "admin.sock"


def wait_for_taps(site: Site, count: int) -> None:
    """Wait until the daemon has exactly so many taps."""
    path = socket_of(site)
    site.collector.process.wait_until(lambda: fetch(path)["taps"] == count, f"{count} taps", 60)


class Tap:
    """A tap that is open when the constructor returns; what it shows waits until it is read."""

    def __init__(self, site: Site, **query: str) -> None:
        self.client = AdminClient(socket_of(site))
        self._response = self.client.get("/v1/tap", query)
        self.unseen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Go away, as a reader that was killed would."""
        self._response.close()
        self.client.close()

    def lines(self, count: int) -> list[bytes]:
        """The next so many events, as their bytes; `unseen` is kept up to date."""
        found: list[bytes] = []
        while len(found) < count:
            line = self._response.readline()
            if not line:
                raise AssertionError(f"the tap ended after {len(found)} of {count} events")
            if line.startswith(b"["):
                self.unseen = orjson.loads(line)[1]
            else:
                found.append(line)
        return found

    def events(self, count: int) -> list[dict[str, Any]]:
        """The next so many events."""
        return [orjson.loads(line) for line in self.lines(count)]

    def until_unseen(self) -> int:
        """Read on until the daemon says that events passed unseen."""
        deadline = time.monotonic() + 20
        while not self.unseen and time.monotonic() < deadline:
            line = self._response.readline()
            if line.startswith(b"["):
                self.unseen = orjson.loads(line)[1]
        return self.unseen


class Terminal:
    """A command on a pseudo-terminal; what it writes there, exactly."""

    def __init__(self, site: Site, *words: str, environment: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "ndcollector", *words, "-c", str(site.collector.config)]
        variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50", **(environment or {})}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, cwd=ROOT, env=variables
        )
        os.close(slave)
        self.text = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: bytes) -> None:
        """What a person types."""
        os.write(self._master, text)

    def read_until(self, words: bytes, seconds: float = 20) -> bytes:
        """Everything written so far, once it has these words in it."""
        deadline = time.monotonic() + seconds
        while words not in self.text:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"no {words!r} in {self.text[-2000:]!r}")
            try:
                self.text += os.read(self._master, 65536)
            except OSError:  # EIO: the command has ended
                raise AssertionError(f"ended without {words!r}: {self.text[-2000:]!r}") from None
        return self.text
