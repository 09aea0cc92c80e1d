"""Who this agent is: its id, key and certificate, whom it trusts, where its collectors are. Kept below `identity/`.

Promises: what is stored is whole or not there: key and certificate lie in one file named by the certificate's
fingerprint, and `identity.json`, replaced atomically, says which file counts; the key is readable by this user alone
and leaves this directory never; a stored identity is read without parsing certificates, so that the agent stays light;
CAs that TLS cannot use are not stored; of several processes (`ndagent renew` beside the agent) one at a time stores.
Refuses: making keys (enrolment.py, in a process of its own), deciding when to renew (app.py).

    identity/identity.json            everything but the key; `pair` names the file below
    identity/<fingerprint>.pem        key, certificate and nothing else; the one before it is kept until the next
    identity/ca.pem                   the collectors' CAs: one, or two during a rotation
    identity/pending.key              the key of an enrolment or renewal that has not been answered yet
    identity/lock                     held (flock) while something is stored
"""

import contextlib
import hashlib
import os
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from ndagent.core import system_files
from ndagent.wire.enrolment import Answer, Endpoints, bundle_fingerprint, certificates_of
from ndagent.wire.fields import BadDocument, Fields

CA_FILE = "ca.pem"
_PRIVATE = 0o600
_MAX_JSON_BYTES = 256 * 1024
MAX_CA_CHARACTERS = 64 * 1024
_NEW = ".new-"
_LEFT_BEHIND_SECONDS = 3600.0
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_AGAIN = "enroll again: ndagent enroll --url https://COLLECTOR:8443 --token TOKEN"


class NoIdentity(Exception):
    """The agent is not enrolled, or what is stored cannot be used; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What enrolment gave, without the key. Times are Unix seconds; `ca` is PEM."""

    agent_id: str
    endpoints: Endpoints
    ca: str
    renew_after: int
    not_after: int
    policy_key: bytes
    group: str
    pair: str  # file name of key and certificate

    @property
    def trust_bundle(self) -> str:
        """The name of the set of CAs, as status reports carry it."""
        return bundle_fingerprint(certificates_of(self.ca))


class IdentityStore:
    """The directory. Methods touch the disk: call them at start, or in a thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._json = directory / "identity.json"

    def load(self) -> Identity:
        """The stored identity; raises NoIdentity."""
        try:
            fields = Fields.parse(self._json.read_bytes(), max_bytes=_MAX_JSON_BYTES)
            identity = Identity(
                agent_id=fields.text("agent_id", at_most=64),
                endpoints=Endpoints.read(fields.nested("endpoints")),
                ca=fields.lines("ca", at_most=MAX_CA_CHARACTERS),
                renew_after=fields.integer("renew_after"),
                not_after=fields.integer("not_after"),
                policy_key=bytes.fromhex(fields.text("policy_key", at_most=1024, default="")),
                group=fields.text("group", at_most=255, default=""),
                pair=fields.text("pair", at_most=80),
            )
        except FileNotFoundError:
            raise NoIdentity(
                "this agent is not enrolled: ndagent enroll --url https://COLLECTOR:8443 --token TOKEN"
            ) from None
        except PermissionError as error:
            raise NoIdentity(f"{self._json}: {error.strerror}; it is for the agent's own user and root") from error
        except (OSError, BadDocument, ValueError) as error:
            raise NoIdentity(f"{self._json}: {error}; {_AGAIN}") from error
        if not (self.directory / identity.pair).is_file():
            raise NoIdentity(f"{self.directory / identity.pair} is gone; {_AGAIN}")
        return identity

    def store(self, answer: Answer, *, key: bytes, not_after: int) -> Identity:
        """Take up what an enrolment or renewal gave for this key (PEM); raises NoIdentity for CAs that are none."""
        _check_authorities(answer.ca)
        pair = hashlib.sha256(answer.certificate.encode()).hexdigest()[:32] + ".pem"
        make_private_directory(self.directory)
        identity = Identity(
            agent_id=answer.agent_id,
            endpoints=answer.endpoints,
            ca=answer.ca,
            renew_after=answer.renew_after,
            not_after=not_after,
            policy_key=answer.policy_key,
            group=answer.group,
            pair=pair,
        )
        with self._locked():
            before = self._pair_before()
            write_private(self.directory / pair, key + answer.certificate.encode())
            self._write(identity)
            self.pending_key.unlink(missing_ok=True)
            for old in self.directory.glob("*.pem"):
                if old.name not in (pair, before, CA_FILE):
                    old.unlink(missing_ok=True)
            sweep(self.directory)
        return identity

    def trust(self, agent_id: str, ca: str) -> bool:
        """Another set of CAs (PEM) for what is stored now, if that is still this agent's; whether it was stored.

        Raises NoIdentity for CAs that are none.
        """
        _check_authorities(ca)
        with self._locked():
            identity = self.load()  # a renewal may have been stored since the caller looked
            if identity.agent_id != agent_id:
                return False
            self._write(replace(identity, ca=ca))
        return True

    @property
    def pending_key(self) -> Path:
        """Where the key of a request waits until it is answered: repeating it must not cost a token's second use."""
        return self.directory / "pending.key"

    def context(self, identity: Identity) -> ssl.SSLContext:
        """TLS 1.3 with the agent's certificate, trusting the collectors' CAs alone. Raises NoIdentity."""
        try:
            context = verifying_context(identity.ca)
            context.load_cert_chain(self.directory / identity.pair)
        except (OSError, ValueError) as error:
            raise NoIdentity(f"{self.directory / identity.pair}: {error}; {_AGAIN}") from error
        return context

    def _write(self, identity: Identity) -> None:
        write_private(self.directory / CA_FILE, identity.ca.encode())
        plain = asdict(identity) | {"policy_key": identity.policy_key.hex() or None, "group": identity.group or None}
        plain["endpoints"] = identity.endpoints.plain()
        write_private(self._json, orjson.dumps(plain, option=orjson.OPT_INDENT_2))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Between processes."""
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | _NO_LINKS, _PRIVATE)
        try:
            _adopt(descriptor, self.directory)
            system_files.lock(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)

    def _pair_before(self) -> str:
        with contextlib.suppress(NoIdentity):
            return self.load().pair
        return ""


def verifying_context(ca: str) -> ssl.SSLContext:
    """TLS 1.3 that trusts these CAs (PEM) and nobody else; the collector's name is checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca)
    return context


def _check_authorities(ca: str) -> None:
    """Raise NoIdentity unless TLS can use these: what is stored must be readable again, and trust somebody."""
    if not ca.isascii() or len(ca) > MAX_CA_CHARACTERS:
        raise NoIdentity(f"the CAs are no PEM of up to {MAX_CA_CHARACTERS} ASCII characters")
    try:
        found = verifying_context(ca).cert_store_stats()["x509_ca"]
    except (OSError, ValueError) as error:
        raise NoIdentity(f"the CAs cannot be used: {error}") from error
    if not found:
        raise NoIdentity("there is no CA's certificate among the CAs")


def make_private_directory(directory: Path) -> None:
    """The directory for its owner alone; what root makes belongs to whom the directory above belongs."""
    if not directory.is_dir():
        directory.mkdir(parents=True, mode=0o700)
        if sys.platform == "win32":  # modes mean nothing there
            from ndagent.windows_security import make_private

            make_private(directory)
        if sys.platform != "win32" and os.geteuid() == 0:
            owner = directory.parent.stat()
            os.chown(directory, owner.st_uid, owner.st_gid, follow_symlinks=False)


def write_private(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace the file atomically and, with `sync`, durably; readable by this user alone from its first byte."""
    # What tempfile.mkstemp does, which would load half a megabyte.
    name = path.with_name(f"{_NEW}{os.urandom(8).hex()}")
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), _PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            _adopt(descriptor, path.parent)
            stream.write(content)
            stream.flush()
            if sync:
                os.fsync(descriptor)
        system_files.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    if sync:
        system_files.sync_directory(path.parent)


def sweep(directory: Path) -> None:
    """Remove what a kill in the middle of `write_private` left behind, some time ago: it may hold a key."""
    for one in directory.glob(_NEW + "*"):
        with contextlib.suppress(OSError):
            if time.time() - one.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                one.unlink()


def _adopt(descriptor: int, directory: Path) -> None:
    """`ndagent enroll` is root's, the agent may be another user, who must read its own key.

    By descriptor: the agent's user could put a link at a path in its directory, and get what that leads to.
    """
    if sys.platform != "win32" and os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
