"""Enrolment between agent and collector: the token that an operator hands over, and the documents of enrol and renew.

Promises: `Token.text` and `Token.parse` are exact inverses, and a token that was cut, mistyped or padded is told from
one that the collector does not know, before anything is sent; what a peer sends is checked field by field and bounded
(see fields.py); the secret never stands in a repr or an error.
Refuses: I/O, clocks, looking into certificates. Whether a secret is good is the collector's to say.

A token is `ndt1_` and, in base64url without padding:

    1 B    number of CA fingerprints, 1 to 4
    5 B    id: names the token where its secret must not stand (logs, `ndcollector agents token ls`)
    24 B   secret: 192 random bits
    32 B   SHA-256 of a CA certificate (DER), as often as the first byte says: the agent talks to nobody whose
           certificate does not come from one of these
    4 B    CRC-32 of all before it, big-endian: only against typing errors

Enrolling takes two connections. On the first, nothing is known of the collector yet: the agent asks for its CA
certificates (`GET /agents/v1/ca`, PEM) and keeps those whose fingerprint the token names. The second is verified
against these, and only there does the agent send the token. Documents are JSON; times are Unix seconds.
"""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import orjson

from ndagent.wire.fields import BadDocument, Fields

PREFIX = "ndt1_"
ID_BYTES, SECRET_BYTES, FINGERPRINT_BYTES = 5, 24, 32
MAX_FINGERPRINTS = 4
MAX_TOKEN_CHARACTERS = 256

MAX_CSR_CHARACTERS = 16 * 1024  # with RSA of 8192 bits and a long subject it is 4 KB
MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 256 * 1024
MAX_ENDPOINTS = 16  # of each protocol
_MAX_PEM_CHARACTERS = 64 * 1024
_NAME = 255

_TOKEN = re.compile(rf"{PREFIX}([A-Za-z0-9_-]+)")
_AGENT_ID = re.compile(r"[a-z2-7]{16,32}")
_ENDPOINT = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")

Reason = Literal[
    "bad_request",
    "bad_csr",
    "unknown_token",
    "used_token",
    "expired_token",
    "revoked_token",
    "too_many_attempts",
    "unknown_agent",
    "revoked_agent",
    "no_ca_key",
    "unavailable",
]


class BadToken(ValueError):
    """Text that is not a token; the message says what may have happened to it, and not what it was."""


@dataclass(frozen=True, slots=True)
class Token:
    """What `ndcollector agents token create` prints. `ca_fingerprints` are SHA-256 of certificates in DER."""

    id: str  # ten hex digits
    secret: bytes = field(repr=False)
    ca_fingerprints: tuple[bytes, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be one."""
        sizes = {len(one) for one in self.ca_fingerprints}
        if not 1 <= len(self.ca_fingerprints) <= MAX_FINGERPRINTS or sizes != {FINGERPRINT_BYTES}:
            raise ValueError(f"a token carries 1 to {MAX_FINGERPRINTS} fingerprints of {FINGERPRINT_BYTES} bytes")
        if len(bytes.fromhex(self.id)) != ID_BYTES or len(self.secret) != SECRET_BYTES:
            raise ValueError(f"a token has an id of {ID_BYTES} bytes and a secret of {SECRET_BYTES}")

    @property
    def text(self) -> str:
        """The token as people copy it."""
        data = bytes([len(self.ca_fingerprints)]) + bytes.fromhex(self.id) + self.secret
        data += b"".join(self.ca_fingerprints)
        data += zlib.crc32(data).to_bytes(4, "big")
        return PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token in this text, white space around it aside; raises BadToken."""
        text = text.strip()
        match = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN_CHARACTERS else None
        if match is None:
            raise BadToken(f"this is not an enrolment token: one begins with {PREFIX} and has no spaces in it")
        try:
            data = base64.urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4))
        except binascii.Error:
            raise BadToken("the token is not whole: copy all of it") from None
        body, crc = data[:-4], data[-4:]
        if len(data) < 5 or zlib.crc32(body).to_bytes(4, "big") != crc:
            raise BadToken("the token is not whole, or a character in it is wrong: copy it anew")
        return cls._from_body(body, text)

    @classmethod
    def _from_body(cls, body: bytes, text: str) -> "Token":
        at = 1 + ID_BYTES + SECRET_BYTES
        prints = tuple(body[start : start + FINGERPRINT_BYTES] for start in range(at, len(body), FINGERPRINT_BYTES))
        try:
            token = cls(body[1 : 1 + ID_BYTES].hex(), body[1 + ID_BYTES : at], prints)
        except ValueError:
            token = None
        if token is None or body[0] != len(prints) or token.text != text:
            raise BadToken("the token has a form that this version does not know: is this program too old?")
        return token


def certificates_of(pem: str) -> tuple[bytes, ...]:
    """The certificates (DER) in a PEM bundle, in its order; what is between them does not matter."""
    return tuple(base64.b64decode("".join(block.split())) for block in _PEM.findall(pem))


def fingerprint(der: bytes) -> bytes:
    """SHA-256 of a certificate in DER: what tokens carry."""
    return hashlib.sha256(der).digest()


def bundle_fingerprint(certificates: Iterable[bytes]) -> str:
    """One name for a set of CA certificates (DER), whatever their order: 64 hex digits.

    Agents report it in their status, so that the collector knows who has the bundle that it hands out now.
    """
    return hashlib.sha256(b"".join(sorted(map(fingerprint, certificates)))).hexdigest()


def is_agent_id(text: str) -> bool:
    """Whether this can be the id of an enrolled agent: lower-case base32, 80 bits or more."""
    return _AGENT_ID.fullmatch(text) is not None


def is_endpoint(text: str) -> bool:
    """Whether this is host:port with a port that exists; IPv6 addresses stand in brackets."""
    match = _ENDPOINT.fullmatch(text)
    return match is not None and 1 <= int(match[1]) <= 65535


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What an agent says of its host; shown to people, decides nothing."""

    hostname: str
    os: str  # "linux", "windows"
    os_name: str = ""  # "Debian GNU/Linux 12 (bookworm)"
    architecture: str = ""
    version: str = ""  # of ndagent

    def plain(self) -> dict[str, object]:
        """As it stands in JSON."""
        return {
            "hostname": self.hostname, "os": self.os, "os_name": self.os_name,
            "architecture": self.architecture, "version": self.version,
        }  # fmt: skip

    @classmethod
    def read(cls, fields: Fields) -> "HostFacts":
        """Raises BadDocument."""
        return cls(
            hostname=fields.text("hostname", at_most=_NAME),
            os=fields.text("os", at_most=64),
            os_name=fields.text("os_name", at_most=_NAME, default=""),
            architecture=fields.text("architecture", at_most=64, default=""),
            version=fields.text("version", at_most=64, default=""),
        )


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """`POST /agents/v1/enroll`. Of the CSR (PEM) only the key is used. Repeating it with the same key is free."""

    token: str = field(repr=False)
    csr: str
    host: HostFacts

    def to_json(self) -> bytes:
        """The request's body."""
        return orjson.dumps({"token": self.token, "csr": self.csr, "host": self.host.plain()})

    @classmethod
    def from_json(cls, data: bytes) -> "EnrolRequest":
        """Inverse of `to_json`; raises BadDocument."""
        fields = Fields.parse(data, max_bytes=MAX_REQUEST_BYTES)
        return cls(
            token=fields.text("token", at_most=MAX_TOKEN_CHARACTERS),
            csr=fields.lines("csr", at_most=MAX_CSR_CHARACTERS),
            host=HostFacts.read(fields.nested("host")),
        )


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """`POST /agents/v1/renew`, over a connection with the certificate that is to be followed by a new one."""

    csr: str

    def to_json(self) -> bytes:
        """The request's body."""
        return orjson.dumps({"csr": self.csr})

    @classmethod
    def from_json(cls, data: bytes) -> "RenewRequest":
        """Inverse of `to_json`; raises BadDocument."""
        return cls(Fields.parse(data, max_bytes=MAX_REQUEST_BYTES).lines("csr", at_most=MAX_CSR_CHARACTERS))


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where agents reach their collectors, by protocol: "host:port", the preferred first."""

    mqtt: tuple[str, ...] = ()
    https: tuple[str, ...] = ()

    def plain(self) -> dict[str, object]:
        """As it stands in JSON."""
        return {"mqtt": list(self.mqtt), "https": list(self.https)}

    @classmethod
    def read(cls, fields: Fields) -> "Endpoints":
        """Raises BadDocument."""
        mqtt, https = (fields.texts(name, count=MAX_ENDPOINTS, at_most=262) for name in ("mqtt", "https"))
        if not all(map(is_endpoint, (*mqtt, *https))):
            raise BadDocument("endpoints: must be lists of host:port")
        return cls(mqtt, https)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to both enrol and renew: all that an agent needs from now on.

    `ca` is a PEM bundle: every CA that may sign the collector's certificate, during a rotation two. `policy_key` is
    the public key that policies are signed with, opaque here; empty where the collector distributes none.
    `renew_after` is two thirds of the certificate's life; `now` is the collector's clock.
    """

    agent_id: str
    certificate: str
    ca: str
    endpoints: Endpoints
    renew_after: int
    now: int
    policy_key: bytes = b""
    group: str = ""

    def to_json(self) -> bytes:
        """The answer's body."""
        return orjson.dumps(
            {
                "agent_id": self.agent_id,
                "certificate": self.certificate,
                "ca": self.ca,
                "endpoints": self.endpoints.plain(),
                "renew_after": self.renew_after,
                "now": self.now,
                "policy_key": base64.b64encode(self.policy_key).decode() or None,
                "group": self.group or None,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Answer":
        """Inverse of `to_json`; raises BadDocument."""
        fields = Fields.parse(data, max_bytes=MAX_ANSWER_BYTES)
        agent_id = fields.text("agent_id", at_most=32)
        if not is_agent_id(agent_id):
            raise BadDocument("agent_id: must be lower-case base32 of 16 to 32 characters")
        try:
            policy_key = base64.b64decode(fields.text("policy_key", at_most=1024, default=""), validate=True)
        except binascii.Error:
            raise BadDocument("policy_key: must be base64") from None
        return cls(
            agent_id=agent_id,
            certificate=fields.lines("certificate", at_most=_MAX_PEM_CHARACTERS),
            ca=fields.lines("ca", at_most=_MAX_PEM_CHARACTERS),
            endpoints=Endpoints.read(fields.nested("endpoints")),
            renew_after=fields.integer("renew_after"),
            now=fields.integer("now"),
            policy_key=policy_key,
            group=fields.text("group", at_most=_NAME, default=""),
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was refused (any status but 2xx): `reason` for programs, `message` for people."""

    reason: str  # a Reason; text, because a newer collector may know more
    message: str

    def to_json(self) -> bytes:
        """The answer's body."""
        return orjson.dumps({"reason": self.reason, "message": self.message})

    @classmethod
    def from_json(cls, data: bytes) -> "Refusal":
        """Inverse of `to_json`; raises BadDocument (a proxy's error page, say)."""
        fields = Fields.parse(data, max_bytes=MAX_REQUEST_BYTES)
        return cls(fields.text("reason", at_most=64), fields.text("message", at_most=4096))
