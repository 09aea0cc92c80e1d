"""The audit trail: who was let in, given a certificate, revoked, suspected, and by whom. `<state_dir>/audit.ndjson`.

Promises: `record` returns once the line is on the disk; a line is whole or, after a crash, the last of its file and
followed by a line break before the next one; daemon and commands write to the same file at the same time; a full file
is renamed to `audit-<UTC>.ndjson` and of these the last `keep` stay, so that the trail has a bound.
Refuses: deciding, and secrets: callers name a token by its id.

A line: {"time": RFC 3339 UTC, "kind": "agent_enrolled", "by": "daemon" or the user who typed, …the caller's fields}.
"""

import fcntl
import os
import pwd
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import orjson

from ndcollector.pki.store import adopt, sync

FILE = "audit.ndjson"
MAX_BYTES = 16 << 20
KEEP = 16
_MAX_TEXT = 1000  # of one field: what a peer said may be long
_MODE = 0o640


class Audit:
    """The trail of one state directory. `by` is who acts through this object."""

    def __init__(
        self, directory: Path, *, by: str, clock: Callable[[], float], max_bytes: int = MAX_BYTES, keep: int = KEEP
    ) -> None:
        self._path = directory / FILE
        self._by = by
        self._clock = clock
        self._max_bytes = max_bytes
        self._keep = keep

    def record(self, kind: str, **fields: object) -> None:
        """Write one line durably; raises OSError. Blocks on the disk: the daemon calls it in a thread."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        said = {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in fields.items()}
        line = {"time": now.isoformat(timespec="milliseconds"), "kind": kind, "by": self._by, **said}
        data = orjson.dumps(line, default=str) + b"\n"
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(data) > self._max_bytes:
                self._rotate(now)
                os.close(descriptor)
                descriptor, size = self._open(), 0
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data
            _write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        """The live file, locked; opened again if another process renamed it while we waited."""
        while True:
            is_new = not self._path.exists()
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                adopt(descriptor, self._path.parent)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if self._path.exists() and os.fstat(descriptor).st_ino == self._path.stat().st_ino:
                    if is_new:
                        sync(self._path.parent)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _rotate(self, now: datetime) -> None:
        stem = f"audit-{now:%Y%m%dT%H%M%S}"
        taken = [int(one.stem.rpartition("-")[2]) for one in self._path.parent.glob(f"{stem}-*.ndjson")]
        self._path.rename(self._path.with_name(f"{stem}-{max(taken, default=0) + 1:06}.ndjson"))
        for old in sorted(self._path.parent.glob("audit-*.ndjson"))[: -self._keep]:
            old.unlink(missing_ok=True)
        sync(self._path.parent)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def person() -> str:
    """Who types: the login behind sudo, else the user of this process."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
