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


def address(value: object) -> str | None:
    """An IP address in its usual form, None where it is none."""
    return _address(value) if isinstance(value, str) and 2 <= len(value) <= 64 else None


def whole(value: object) -> int | None:
    """A whole number that is not negative and fits 63 bits; "007" is one, "7.0" is none."""
    if isinstance(value, int):
        return value if 0 <= value < 1 << 63 else None
    if isinstance(value, str) and 0 < len(value) <= 18 and value.isascii() and value.isdigit():
        return int(value)
    return None


def port(value: object) -> int | None:
    """A port; None where it is none."""
    found = whole(value)
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


def mac(value: object) -> str | None:
    """A MAC address as ECS writes it (RFC 7042: upper case, hyphens); None where it is none."""
    if not isinstance(value, str) or not 12 <= len(value) <= 17:
        return None
    digits = _MAC_MARKS.sub("", value).upper()
    if len(digits) != 12 or not _HEX.fullmatch(digits):
        return None
    return "-".join(digits[at : at + 2] for at in range(0, 12, 2))


_MAC_MARKS = re.compile(r"[:.-]")
_HEX = re.compile(r"[0-9A-F]+")
_ENDS = ("source", "destination")
_KINDS: dict[str, Callable[[object], Any]] = {
    **{f"{end}.{name}": address for end in _ENDS for name in ("ip", "nat.ip")},
    **{f"{end}.{name}": port for end in _ENDS for name in ("port", "nat.port")},
    **{f"{end}.{name}": whole for end in _ENDS for name in ("bytes", "packets")},
    **{f"{end}.mac": mac for end in _ENDS},
    "observer.ip": address,
    "network.bytes": whole,
    "network.packets": whole,
    "event.severity": whole,
    "event.duration": whole,
    "http.response.status_code": whole,
    "process.pid": whole,
    "file.size": whole,
}
_ADDRESSES = {f"{end}.ip": f"{end}.address" for end in _ENDS}


@lru_cache(1024)
def _steps(path: str) -> tuple[tuple[str, ...], str]:
    *parents, name = path.split(".")
    return tuple(parents), name


def nested(flat: Flat) -> dict[str, Any]:
    """The fields as ECS nests them. Paths come from the families' tables, so none is another's parent."""
    event: dict[str, Any] = {}
    for path, given in flat.items():
        if given is None or given == "" or given == {} or given == []:
            continue
        value, place = given, path
        if (kind := _KINDS.get(path)) is not None and (value := kind(given)) is None:
            place = _ADDRESSES.get(path, "")
            value = given
            if not place or not isinstance(given, str):
                continue
        parents, name = _steps(place)
        inner = event
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner.setdefault(name, value)
    return event


_ODD = re.compile(r"[^A-Za-z0-9_@-]")


@lru_cache(4096)
def _plain(name: str) -> str:
    return _ODD.sub("_", name).strip("_")


def plain_name(name: str) -> str:
    """A name from a message as the name of a field: no dots (they would nest), 64 characters at most; may be empty."""
    return _plain(name[:MAX_NAME_CHARACTERS])


def sort_out(pairs: Iterable[tuple[str, str]], known: dict[str, str], *, own: str) -> Flat:
    """Known names become ECS fields, all others stand under `own`; of a name that comes twice the first counts."""
    flat: Flat = {}
    rest: dict[str, str] = {}
    for name, value in pairs:
        if value == "":
            continue
        if (path := known.get(name)) is not None:
            flat.setdefault(path, value)
        elif found := plain_name(name):
            rest.setdefault(found, value)
    flat[own] = rest
    return flat
