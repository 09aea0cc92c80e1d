"""What a family sees of a message and what it may say of it: ECS fields by their dotted names, checked in one place.

Promises: an `ip` is one (anything else is the end's `address`), a port is 0 to 65535, a count fits 64 bits; what does
not fit its field is left out, `message` has it still. Names that come from a message are bounded in number, length and
characters.
Refuses: knowing any device.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ndagent.wire.devices.signatures import Signature

MAX_PAIRS = 256
"""Pairs read from one message. FortiGate, the most talkative, writes about 80; the rest is in `message`."""
MAX_NAME_CHARACTERS = 64
ADDRESSES_CACHED = 4096
MAX_CHECKED_CHARACTERS = 64
"""No address, port, number or MAC address is longer; the caches of those that were seen stay small by it."""

Flat = dict[str, Any]
"""Dotted ECS name → value; a value that is a dict holds the family's own names. None and "" say nothing."""


class Message(NamedTuple):
    """One message as the decoder took it apart, as text."""

    text: str
    app: str = ""
    msgid: str = ""
    data: dict[str, dict[str, Any]] = {}  # noqa: RUF012  # a default that nobody writes to

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of the first structured-data element."""
        return next(iter(self.data.values()), {})


class Family(NamedTuple):
    """See the package."""

    name: str
    signatures: Sequence[Signature]
    read: Callable[[Message], Flat | None]


@lru_cache(ADDRESSES_CACHED)
def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return None


def address(text: str) -> str | None:
    """An IP address in its usual form, None where it is none."""
    return _address(text) if len(text) <= MAX_CHECKED_CHARACTERS else None


def whole(text: str | None) -> int | None:
    """A whole number that fits 63 bits, without a sign; "007" is one, "7.0" is none."""
    return int(text) if text and len(text) <= 18 and text.isascii() and text.isdigit() else None


@lru_cache(ADDRESSES_CACHED)
def port(text: str) -> int | None:
    """A port; None where it is none."""
    found = whole(text)
    return found if found is not None and found <= 65535 else None


PROTOCOLS = {
    "1": "icmp",
    "2": "igmp",
    "6": "tcp",
    "17": "udp",
    "47": "gre",
    "50": "esp",
    "58": "ipv6-icmp",
    "132": "sctp",
}
"""IANA's numbers of what firewalls see; any other stays a number."""
NUMBERS = {name: number for number, name in PROTOCOLS.items()}

_ALIASES = {"icmp6": "ipv6-icmp", "icmpv6": "ipv6-icmp", "ipv6icmp": "ipv6-icmp"}

# What a firewall did, as ECS has categories, types and outcomes. A refusal is its success (Elastic's integrations too).
CONNECTION: Flat = {"event.category": ["network"], "event.type": ["connection"]}
"""The message does not say what became of it, or says it in a word that is not known."""
STARTED: Flat = {"event.category": ["network"], "event.type": ["connection", "start"], "event.outcome": "success"}
ENDED: Flat = {"event.category": ["network"], "event.type": ["connection", "end"], "event.outcome": "success"}
ALLOWED: Flat = {"event.category": ["network"], "event.type": ["connection", "allowed"], "event.outcome": "success"}
DENIED: Flat = {"event.category": ["network"], "event.type": ["connection", "denied"], "event.outcome": "success"}


def transport(given: str) -> Flat:
    """network.transport and iana_number of a protocol's name or number."""
    name = _ALIASES.get(given.lower(), given.lower())
    if (number := NUMBERS.get(name)) is not None:
        return {"network.transport": name, "network.iana_number": number}
    if name in PROTOCOLS:
        return {"network.transport": PROTOCOLS[name], "network.iana_number": name}
    return {"network.iana_number": name} if whole(name) is not None else {"network.transport": name}


def login(succeeded: bool) -> Flat:
    """What somebody asked who came to a device."""
    return {
        "event.category": ["authentication"],
        "event.type": ["start"],
        "event.outcome": "success" if succeeded else "failure",
    }


def split_user(name: str) -> tuple[str, str]:
    r"""Name and domain of DOMAIN\name; no domain where there is none."""
    domain, found, user = name.partition("\\")
    return (user, domain) if found and user else (name, "")


def mac(text: str) -> str | None:
    """A MAC address as ECS writes it (RFC 7042: upper case, hyphens); None where it is none."""
    digits = _MAC_MARKS.sub("", text).upper()
    if len(digits) != 12 or not _HEX.fullmatch(digits):
        return None
    return "-".join(digits[at : at + 2] for at in range(0, 12, 2))


_MAC_MARKS = re.compile(r"[:.-]")
_HEX = re.compile(r"[0-9A-F]+")
_ENDS = ("source", "destination")
_KINDS: dict[str, Callable[[str], Any]] = {
    **{f"{end}.{name}": _address for end in _ENDS for name in ("ip", "nat.ip")},
    **{f"{end}.{name}": port for end in _ENDS for name in ("port", "nat.port")},
    **{f"{end}.{name}": whole for end in _ENDS for name in ("bytes", "packets")},
    **{f"{end}.mac": mac for end in _ENDS},
    "observer.ip": _address,
    "network.bytes": whole,
    "network.packets": whole,
    "event.severity": whole,
    "event.duration": whole,
    "http.response.status_code": whole,
    "process.pid": whole,
    "file.size": whole,
}
_ADDRESSES = frozenset(f"{end}.ip" for end in _ENDS)
"""What is no address there is a name, and stands in `address` beside it."""


class _Plan(NamedTuple):
    """Where a path's value goes, worked out once: paths come from the families' tables."""

    kind: Callable[[str], Any] | None
    top: str
    between: tuple[str, ...]
    name: str


_PLANS: dict[str, _Plan] = {}


def _plan(path: str) -> _Plan:
    *parents, name = path.split(".")
    top, *between = parents or [""]
    found = _PLANS[path] = _Plan(_KINDS.get(path), top, tuple(between), name)
    return found


def nested(flat: Flat) -> dict[str, Any]:
    """The fields as ECS nests them. No path is another's parent, and no family gives one that comes from a message."""
    event: dict[str, Any] = {}
    for path, value in flat.items():
        if not value and value != 0:
            continue
        kind, top, between, name = _PLANS.get(path) or _plan(path)
        if kind is not None and type(value) is str:  # a number is the family's own
            found = kind(value) if len(value) <= MAX_CHECKED_CHARACTERS else None
            if found is None:
                if path not in _ADDRESSES:
                    continue
                found, name = value, "address"
            value = found  # noqa: PLW2901  # what the field holds
        if not top:
            event[name] = value
            continue
        inner = event.get(top)
        if inner is None:
            inner = event[top] = {}
        for parent in between:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return event


_ODD = re.compile(r"[^A-Za-z0-9_@-]")


@lru_cache(4096)
def _plain(name: str) -> str:
    return _ODD.sub("_", name).strip("_")


def plain_name(name: str) -> str:
    """A name from a message as the name of a field: no dots (they would nest), 64 characters at most; may be empty."""
    return _plain(name[:MAX_NAME_CHARACTERS])


def sort_out(pairs: Iterable[tuple[str, str]], known: dict[str, str], *, own: str, first_counts: bool = False) -> Flat:
    """Known names become ECS fields, all others stand under `own`.

    A name that comes twice with two values is nobody's word: one of them may be a user who is called `x src=10.0.0.1`.
    All its values stand in `said_twice` and nowhere else, unless `first_counts`: where a value cannot look like a name.
    """
    flat: Flat = {}
    rest: dict[str, Any] = {}
    values: dict[str, str] = {}
    twice: dict[str, list[str]] = {}
    for name, value in pairs:
        if not value:
            continue
        if (first := values.setdefault(name, value)) != value:
            twice.setdefault(name, [first]).append(value)
            continue
        path = known.get(name)
        if path is None:
            if (found := plain_name(name)) and found not in rest:
                rest[found] = value
        elif path not in flat:
            flat[path] = value
    if twice and not first_counts:
        _leave_out(twice, known, flat, rest)
    flat[own] = rest
    return flat


def _leave_out(twice: dict[str, list[str]], known: dict[str, str], flat: Flat, rest: dict[str, Any]) -> None:
    for name, values in twice.items():
        path = known.get(name)
        if path is None:
            rest.pop(plain_name(name), None)
        elif flat.get(path) == values[0]:
            del flat[path]
    rest["said_twice"] = {found: values for name, values in twice.items() if (found := plain_name(name))}
