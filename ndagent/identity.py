"""Who this agent is: its id, key and certificate, whom it trusts, where its collectors are. Kept below `identity/`.

Promises: what is stored is whole or not there: key and certificate lie in one file named by the certificate's
fingerprint, and `identity.json`, replaced atomically, says which file counts; the key is readable by this user alone
and leaves this directory never; a stored identity is read without parsing certificates, so that the agent stays light.
Refuses: making keys (enrolment.py, in a process of its own), deciding when to renew (app.py).

    identity/identity.json            everything but the key; `pair` names the file below
    identity/<fingerprint>.pem        key, certificate and nothing else; the one before it is kept until the next
    identity/ca.pem                   the collectors' CAs: one, or two during a rotation
    identity/pending.key              the key of an enrolment or renewal that has not been answered yet
"""

import contextlib
import hashlib
import os
import ssl
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from ndagent.wire.enrolment import Answer, Endpoints, bundle_fingerprint, certificates_of
from ndagent.wire.fields import BadDocument, Fields

CA_FILE = "ca.pem"
_PRIVATE = 0o600
_MAX_JSON_BYTES = 256 * 1024
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
                ca=fields.lines("ca", at_most=64 * 1024),
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
        except (OSError, BadDocument, ValueError) as error:
            raise NoIdentity(f"{self._json}: {error}; {_AGAIN}") from error
        if not (self.directory / identity.pair).is_file():
            raise NoIdentity(f"{self.directory / identity.pair} is gone; {_AGAIN}")
        return identity

    def store(self, answer: Answer, *, key: bytes, not_after: int) -> Identity:
        """Take up what an enrolment or renewal gave for this key (PEM)."""
        pair = hashlib.sha256(answer.certificate.encode()).hexdigest()[:32] + ".pem"
        make_private_directory(self.directory)
        before = self._pair_before()
        write_private(self.directory / pair, key + answer.certificate.encode())
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
        self._write(identity)
        self.pending_key.unlink(missing_ok=True)
        for old in self.directory.glob("*.pem"):
            if old.name not in (pair, before, CA_FILE):
                old.unlink(missing_ok=True)
        return identity

    def trust(self, identity: Identity, ca: str) -> Identity:
        """The same identity with another set of CAs (PEM), as the collector hands it out during a rotation."""
        changed = replace(identity, ca=ca)
        self._write(changed)
        return changed

    @property
    def pending_key(self) -> Path:
        """Where the key of a request waits until it is answered: repeating it must not cost a token's second use."""
        return self.directory / "pending.key"

    def context(self, identity: Identity) -> ssl.SSLContext:
        """TLS 1.3 with the agent's certificate, trusting the collectors' CAs alone. Raises NoIdentity."""
        context = verifying_context(identity.ca)
        try:
            context.load_cert_chain(self.directory / identity.pair)
        except (ssl.SSLError, OSError) as error:
            raise NoIdentity(f"{self.directory / identity.pair}: {error}; {_AGAIN}") from error
        return context

    def _write(self, identity: Identity) -> None:
        write_private(self.directory / CA_FILE, identity.ca.encode())
        plain = asdict(identity) | {"policy_key": identity.policy_key.hex() or None, "group": identity.group or None}
        plain["endpoints"] = identity.endpoints.plain()
        write_private(self._json, orjson.dumps(plain, option=orjson.OPT_INDENT_2))

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


def make_private_directory(directory: Path) -> None:
    """The directory for its owner alone; what root makes belongs to whom the directory above belongs."""
    if not directory.is_dir():
        directory.mkdir(parents=True, mode=0o700)
        _adopt(directory)


def write_private(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace the file atomically and, with `sync`, durably; readable by this user alone from its first byte."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if sync:
                os.fsync(descriptor)
        Path(name).chmod(_PRIVATE)
        _adopt(Path(name))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if sync and os.name == "posix":  # Windows cannot open a directory
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _adopt(path: Path) -> None:
    """`ndagent enroll` is root's, the agent may be another user, who must read its own key."""
    if os.name == "posix" and os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
