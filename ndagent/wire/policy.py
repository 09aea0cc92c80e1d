"""The policy bundle: what a collector signs for one agent, and the rules by which that agent takes it or not.

Layout of a bundle:

    4 B   magic "NDP1"
    64 B  Ed25519 signature (RFC 8032) of DOMAIN and the payload
    rest  payload: one JSON object in canonical form (keys sorted, no white space, UTF-8, as orjson writes it)

    {"audience": agent id, "expires_at": s, "issued_at": s, "layers": {"global/base": SHA-256, …}, "next_key": base64,
     "settings": {…}, "version": n}                      times are Unix seconds; next_key stands only in a key rotation

Promises:
  * nothing of a payload is looked at before its signature was found right (`open_bundle` asks in that order);
  * the signature covers all of it: audience, version and expiry as well as the settings;
  * one bundle has one form: a payload that is not canonical (a key twice, 2e0 for 2.0, white space) is refused, signed
    or not, so no two parsers can read it differently;
  * `digest` and `etag` say what the policy is and not when it was signed: signed anew before it expires, they stay.

Refuses: keys and signatures themselves (they come in as functions), clocks, and what the settings mean
(core/policy_settings.py).
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

MAGIC = b"NDP1"
DOMAIN = b"neurodefender policy bundle v1\x00"
"""Stands before what is signed: a signature made for anything else can never pass as one of a policy."""
SIGNATURE_BYTES, KEY_BYTES = 64, 32
MAX_BUNDLE_BYTES = 256 * 1024
MAX_VERSION = 2**53 - 1  # what every JSON reader keeps exact
MAX_TIME = 253_402_300_799  # 9999-12-31
CLOCK_SKEW_SECONDS = 600
"""An agent whose clock is fast by this much still takes a bundle that just expired by it."""

_HEAD_BYTES = len(MAGIC) + SIGNATURE_BYTES
_REQUIRED = {"audience", "expires_at", "issued_at", "layers", "settings", "version"}

Verify = Callable[[bytes, bytes], bool]
"""(signature, message) → whether a key that the agent trusts made it."""
Sign = Callable[[bytes], bytes]
"""message → signature."""


class BadBundle(ValueError):
    """Bytes that are no bundle, or not one for whoever opens them; the text holds nothing of the content."""


class NotTrusted(BadBundle):
    """The signature was not made by a key that is trusted here."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """One agent's policy. `settings` is plain data; `layers` names what it was merged from, with their digests."""

    audience: str
    version: int
    issued_at: int
    expires_at: int
    settings: Mapping[str, Any] = field(repr=False)
    layers: Mapping[str, str] = field(default_factory=dict)
    next_key: bytes | None = None

    @property
    def payload(self) -> bytes:
        """The canonical form; what is signed, behind DOMAIN."""
        times = {"issued_at": self.issued_at, "expires_at": self.expires_at}
        return canonical({**self._lasting(), **times, "layers": self.layers})

    @property
    def digest(self) -> str:
        """SHA-256 of what it asks for, from whom, in hex; neither the times nor which layers said it."""
        return hashlib.sha256(canonical(self._lasting())).hexdigest()

    @property
    def etag(self) -> str:
        """The strong entity tag (RFC 9110 §8.8.3), quotes included."""
        return f'"{self.version}-{self.digest[:16]}"'

    def _lasting(self) -> dict[str, Any]:
        lasting = {"audience": self.audience, "version": self.version, "settings": self.settings}
        return lasting if self.next_key is None else lasting | {"next_key": base64.b64encode(self.next_key).decode()}


def canonical(value: object) -> bytes:
    """Plain data in the one form that is signed and hashed; raises ValueError for what is not plain data."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise ValueError(f"not plain data: {error}") from None


def settings_digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings alone, in hex: whether two policies ask for the same."""
    return hashlib.sha256(canonical(settings)).hexdigest()


def pack(bundle: Bundle, *, sign: Sign) -> bytes:
    """The signed bundle; raises BadBundle for one that is too large for agents to take."""
    payload = bundle.payload
    if _HEAD_BYTES + len(payload) > MAX_BUNDLE_BYTES:
        raise BadBundle(f"the policy has {len(payload)} bytes, {MAX_BUNDLE_BYTES - _HEAD_BYTES} are allowed")
    return MAGIC + sign(DOMAIN + payload) + payload


def open_bundle(data: bytes, *, verify: Verify) -> Bundle:
    """The bundle in these bytes; raises NotTrusted for a wrong signature, BadBundle for all else that is wrong."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise BadBundle(f"{len(data)} bytes, {MAX_BUNDLE_BYTES} are allowed")
    if len(data) <= _HEAD_BYTES or data[: len(MAGIC)] != MAGIC:
        raise BadBundle("not a policy bundle of this version")
    signature, payload = data[len(MAGIC) : _HEAD_BYTES], data[_HEAD_BYTES:]
    if not verify(signature, DOMAIN + payload):
        raise NotTrusted("the signature is not that of the key this agent was enrolled with")
    return _parse(payload)


def _parse(payload: bytes) -> Bundle:
    try:
        found = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise BadBundle(f"the payload is not JSON: {error.msg}") from None
    if not isinstance(found, dict) or canonical(found) != payload:
        raise BadBundle("the payload is not in canonical form")
    if found.keys() - {"next_key"} != _REQUIRED:
        raise BadBundle("the payload's fields are not those of this version")
    layers, settings = found["layers"], found["settings"]
    if not isinstance(settings, dict) or not isinstance(layers, dict):
        raise BadBundle("settings and layers must be objects")
    if not all(isinstance(digest, str) for digest in layers.values()):
        raise BadBundle("layers must hold digests")
    if not isinstance(found["audience"], str) or not found["audience"]:
        raise BadBundle("the audience must be the id of an agent")
    return Bundle(
        audience=found["audience"],
        version=_integer(found, "version", low=1, high=MAX_VERSION),
        issued_at=_integer(found, "issued_at", low=0, high=MAX_TIME),
        expires_at=_integer(found, "expires_at", low=0, high=MAX_TIME),
        settings=settings,
        layers=layers,
        next_key=_key(found["next_key"]) if "next_key" in found else None,
    )


def _integer(found: dict[str, Any], name: str, *, low: int, high: int) -> int:
    value = found[name]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadBundle(f"{name} must be a whole number from {low} to {high}")
    return value


def _key(text: object) -> bytes:
    try:
        key = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES or base64.b64encode(key).decode() != text:
        raise BadBundle(f"next_key must be {KEY_BYTES} bytes in base64")
    return key


class Floor(NamedTuple):
    """The highest version that an agent ever found authentic, and what it was: nothing below is taken again."""

    version: int
    digest: str


def why_not_adopted(bundle: Bundle, *, agent_id: str, floor: Floor | None, now: float) -> str | None:
    """Why an agent must not take this authentic bundle now; None if it may.

    `now` is Unix seconds by the agent's clock. A bundle from the future is taken: a slow clock is more likely, and the
    version says what is newer.
    """
    if bundle.audience != agent_id:
        return "it is meant for another agent"
    if floor is not None and bundle.version < floor.version:
        return f"it is older than version {floor.version}, which was here already"
    if floor is not None and bundle.version == floor.version and bundle.digest != floor.digest:
        return "another policy was here under the same version; apply it anew on the collector"
    if now > bundle.expires_at + CLOCK_SKEW_SECONDS:
        return f"it expired at Unix time {bundle.expires_at}; is this host's clock right?"
    return None
