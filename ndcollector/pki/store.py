"""The PKI directory: atomic files, one writer at a time, and the index of what was issued.

Promises: a file is there whole and synced or not at all; `create` never overwrites; an index line torn by a crash is
the last one and belongs to a command that had not reported success; any other damaged line is an error, because
skipping it could forget a revocation. Refuses: knowing what is in a certificate.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

CA_CERTIFICATE, CA_KEY, CA_CRL, INDEX, ISSUED = "ca.crt", "ca.key", "ca.crl", "index.jsonl", "issued"
CA_NEXT_KEY, CA_OLD_KEY = "ca.next.key", "ca.old.key"  # of the other CA of a rotation, see rotation.py
_TAIL_BYTES = 64 * 1024  # more than any line of the index has
PRIVATE, PUBLIC = 0o600, 0o644


class PkiError(Exception):
    """What was asked for cannot be done; the message says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate issued here. `serial` is upper-case hex; `reason` as in RFC 5280 §5.3.1, or empty.

    `issuer` is the SHA-256 of the CA's certificate in hex; empty for one from before the first rotation.
    """

    kind: str
    name: str
    serial: str
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None = None
    reason: str = ""
    issuer: str = ""

    def is_current(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and now < self.not_after


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's write lock; waits for another holder. Raises PkiError where there is no directory."""
    try:
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except FileNotFoundError:
        raise PkiError(f"{directory} does not exist; `ndcollector pki init` makes it") from None
    try:
        adopt(descriptor, directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """The directory, 0700, if it is not there; one that is keeps its mode and owner."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        adopt(descriptor, directory.parent)
    finally:
        os.close(descriptor)
    sync(directory.parent)


def create(path: Path, content: bytes, mode: int) -> None:
    """A new file; raises FileExistsError rather than overwrite."""
    temporary = _temporary(path, content, mode)
    try:
        os.link(temporary, path)  # fails where os.replace would overwrite
    finally:
        temporary.unlink()
    sync(path.parent)


def overwrite(path: Path, content: bytes, mode: int) -> None:
    """The file with new content; readers see the old or the new."""
    temporary = _temporary(path, content, mode)
    temporary.replace(path)
    sync(path.parent)


def set_aside(path: Path, suffix: str) -> None:
    """A second name for what `overwrite` is about to replace, if it is there: `a.crt` → `a.<suffix>.crt`."""
    try:
        os.link(path, path.with_name(f"{path.stem}.{suffix}{path.suffix}"))
    except (FileNotFoundError, FileExistsError):  # nothing to keep; or kept by an earlier try
        return


def record_issued(directory: Path, certificate: Certificate) -> None:
    """Durable before the certificate is; call under the lock."""
    _append(
        directory,
        {
            "event": "issued",
            "serial": certificate.serial,
            "kind": certificate.kind,
            "name": certificate.name,
            "not_before": certificate.not_before.isoformat(),
            "not_after": certificate.not_after.isoformat(),
            "issuer": certificate.issuer,
        },
    )


def record_revoked(directory: Path, *, serial: str, now: datetime, reason: str) -> None:
    """Durable before the CRL that says so; call under the lock."""
    _append(directory, {"event": "revoked", "serial": serial, "at": now.isoformat(), "reason": reason})


def record_authority(directory: Path, issuer: str) -> None:
    """Say who issued what stands in the index without an issuer; before there is a second CA, and under the lock."""
    _append(directory, {"event": "authority", "issuer": issuer})


def list_certificates(directory: Path) -> list[Certificate]:
    """Everything issued here, oldest first; raises PkiError if the index is damaged."""
    found: dict[str, Certificate] = {}
    for number, entry in enumerate(read_index(directory)[0], 1):
        with _naming(directory / INDEX, number):
            _apply(found, entry)
    return list(found.values())


def read_index(directory: Path, start: int = 0) -> tuple[list[dict[str, str]], int]:
    """The index's entries from this byte on, and where the next one will begin; PkiError where it is damaged."""
    try:
        with (directory / INDEX).open("rb") as stream:
            stream.seek(start)
            whole, _, _torn = stream.read().rpartition(b"\n")
    except FileNotFoundError:
        return [], 0
    if not whole:
        return [], start
    entries = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        with _naming(directory / INDEX, number):
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise TypeError("not an object")
            entries.append(entry)
    return entries, start + len(whole) + 1


@contextmanager
def _naming(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise PkiError(
            f"{path}:{number}: damaged ({type(error).__name__}); repair the line from a backup: "
            "without it a revocation could be forgotten"
        ) from None


def certificate_of(entry: dict[str, str]) -> Certificate:
    """An entry that says a certificate was issued; raises KeyError, ValueError."""
    begin, end = datetime.fromisoformat(entry["not_before"]), datetime.fromisoformat(entry["not_after"])
    return Certificate(entry["kind"], entry["name"], entry["serial"], begin, end, issuer=entry.get("issuer", ""))


def _apply(found: dict[str, Certificate], entry: dict[str, str]) -> None:
    if entry["event"] == "authority":
        nameless = [one for one in found.values() if not one.issuer]
        found.update({one.serial: replace(one, issuer=entry["issuer"]) for one in nameless})
        return
    serial = entry["serial"]
    if entry["event"] == "revoked":
        at = datetime.fromisoformat(entry["at"])
        found[serial] = replace(found[serial], revoked_at=at, reason=entry["reason"])
        return
    found[serial] = certificate_of(entry)


def _append(directory: Path, entry: dict[str, str]) -> None:
    """One line, synced. What a crash left of an earlier line is cut off first."""
    path = directory / INDEX
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    with os.fdopen(descriptor, "r+b") as stream:
        adopt(descriptor, directory)
        start = max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES)
        stream.seek(start)
        stream.truncate(start + stream.read().rfind(b"\n") + 1)
        stream.seek(0, os.SEEK_END)
        stream.write(json.dumps(entry).encode() + b"\n")
        stream.flush()
        os.fsync(descriptor)
    sync(directory)


def _temporary(path: Path, content: bytes, mode: int) -> Path:
    """The content in a synced file beside `path`; born 0600, so that no key is ever readable by others."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            adopt(descriptor, path.parent)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def adopt(descriptor: int, directory: Path) -> None:
    """What root makes belongs to the directory's owner: the daemon runs as that user and must read its key."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def sync(directory: Path) -> None:
    """Make the names in a directory survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
