"""How the texts in a Windows event's data become values of ECS fields: one small function for each way.

Promises: what is no value (an empty text, "-", the null SID, "LOCAL" for an address, port 0) is None, so that the field
stays away; what does not look as expected is None too, and stays readable in winlog.event_data. Linear in the text.
"""

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ndagent.wire.winevent_names import (
    DNS_TYPES,
    ENCRYPTION_TYPES,
    KERBEROS_RESULTS,
    LOGON_TYPES,
    SERVICE_STARTS,
    STATUSES,
)

MAX_ANSWERS = 64
"""DNS answers of one event."""
_HASHES = {"MD5": "md5", "SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512", "IMPHASH": "imphash"}
_HEX = re.compile(r"[0-9A-Fa-f]{32,128}")
_DNS_RECORD = re.compile(r"type:\s{0,4}(\d{1,5})\s{1,4}(\S{1,255})")
_HIVES = {
    "HKLM": "HKLM", "HKU": "HKU", "HKCR": "HKCR", "HKCU": "HKCU", "\\REGISTRY\\MACHINE": "HKLM",
    "\\REGISTRY\\USER": "HKU", "HKEY_LOCAL_MACHINE": "HKLM", "HKEY_USERS": "HKU",
}  # fmt: skip

Reader = Callable[[str], Any]


def name(value: str) -> str | None:
    """Text that says something."""
    value = value.strip()
    return value if value and value != "-" else None


def text(value: str) -> str | None:
    """As `name`, but as it is: a script's first line may begin with blanks."""
    return value if value.strip() and value != "-" else None


def sid(value: str) -> str | None:
    """A security identifier; S-1-0-0 is nobody."""
    return value if value.startswith("S-1-") and value != "S-1-0-0" else None


def guid(value: str) -> str | None:
    """A GUID without its braces; all zeros is none."""
    bare = value.strip("{}").lower()
    return bare if bare.strip("0-") else None


def number(value: str) -> int | None:
    """A number, decimal or 0x…"""
    try:
        found = int(value, 16) if value[:2] in ("0x", "0X") else int(value)
    except ValueError:
        return None
    return found if 0 <= found < 2**63 and len(value) < 20 else None


def pid(value: str) -> int | None:
    """A process or thread; 0 is none."""
    return number(value) or None


def port(value: str) -> int | None:
    """A port; 0 is none."""
    found = number(value)
    return found if found and found < 65536 else None


@lru_cache(4096)
def ip(value: str) -> str | None:
    """An address, an IPv4 one that came as IPv6 (::ffff:…) as itself."""
    if not value[:1].isalnum() and value[:1] != ":":
        return None
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def basename(value: str) -> str | None:
    """What stands behind the last backslash or slash."""
    return name(value.rpartition("\\")[2].rpartition("/")[2])


def dirname(value: str) -> str | None:
    """What stands before the last backslash."""
    return name(value.rpartition("\\")[0])


def extension(value: str) -> str | None:
    """The file's extension without its dot."""
    return name((basename(value) or "").rpartition(".")[2]) if "." in (basename(value) or "") else None


def user_name(value: str) -> str | None:
    r"""The name in DOMAIN\name."""
    return name(value.rpartition("\\")[2])


def user_domain(value: str) -> str | None:
    r"""The domain in DOMAIN\name."""
    return name(value.rpartition("\\")[0])


def _relative_names(value: str) -> list[tuple[str, str]]:
    """The parts of a distinguished name (RFC 4514), in order; a comma behind a backslash is part of a value."""
    parts = (part.partition("=") for part in re.split(r"(?<!\\),", value))
    return [(key.strip().upper(), found.replace("\\,", ",")) for key, _, found in parts]


def common_name(value: str) -> str | None:
    """The first CN of a distinguished name; a text that is none, as it is."""
    found = next((part for key, part in _relative_names(value) if key == "CN"), None)
    return name(found if found is not None else value)


def distinguished_domain(value: str) -> str | None:
    """The DC parts of a distinguished name, joined."""
    return name(".".join(part for key, part in _relative_names(value) if key == "DC"))


def logon_type(value: str) -> str:
    """The logon type's name."""
    return LOGON_TYPES.get(value, value)


def status(value: str) -> str | None:
    """What an NTSTATUS means; the number where that is not known."""
    return STATUSES.get(value.lower(), name(value))


def failed_status(value: str) -> str | None:
    """The same; success is no failure."""
    return status(value) if number(value) else None


def reason(value: str) -> str | None:
    """Why, if the status is known and a failure."""
    return STATUSES.get(value.lower()) if number(value) else None


def kerberos(value: str) -> str | None:
    """The name of a Kerberos result."""
    return KERBEROS_RESULTS.get(value.lower())


def encryption(value: str) -> str | None:
    """The name of a Kerberos encryption type."""
    return ENCRYPTION_TYPES.get(value.lower())


def service_start(value: str) -> str | None:
    """When a service is started, by its number."""
    return SERVICE_STARTS.get(value)


def words(value: str) -> list[str] | None:
    """A list that Windows writes one a line."""
    return value.split()[:MAX_ANSWERS] or None


def hashes(value: str) -> dict[str, str] | None:
    """MD5=…,SHA256=… by algorithm."""
    found = {}
    for part in value.split(",")[:8]:
        algorithm, _, digest = part.partition("=")
        if algorithm in _HASHES and _HEX.fullmatch(digest):
            found[_HASHES[algorithm]] = digest.lower()
    return found or None


def boolean(value: str) -> bool | None:
    """True or false."""
    return {"true": True, "false": False}.get(value.lower())


def direction(value: str) -> str | None:
    """Whether the connection went out (Sysmon's Initiated)."""
    return {"true": "egress", "false": "ingress"}.get(value.lower())


def ip_version(value: str) -> str | None:
    """Sysmon's SourceIsIpv6 in ECS words."""
    return {"true": "ipv6", "false": "ipv4"}.get(value.lower())


def hive(value: str) -> str | None:
    """The abbreviation of a registry path's hive."""
    return next((short for long, short in _HIVES.items() if value.upper().startswith(long)), None)


def key(value: str) -> str | None:
    """A registry path without its hive."""
    found = next((long for long in _HIVES if value.upper().startswith(long)), None)
    return name(value[len(found) :].strip("\\")) if found else None


def _records(value: str) -> list[tuple[str, str]]:
    """Sysmon's QueryResults: addresses and `type:  5 name`, each behind a semicolon."""
    found = []
    for part in value.split(";")[:MAX_ANSWERS]:
        if record := _DNS_RECORD.fullmatch(part.strip()):
            found.append((DNS_TYPES.get(record[1], record[1]), record[2]))
        elif address := ip(part.strip()):
            found.append(("AAAA" if ":" in address else "A", address))
    return found


def resolved(value: str) -> list[str] | None:
    """The addresses among the answers."""
    return [data for kind, data in _records(value) if kind in ("A", "AAAA")] or None


def answers(value: str) -> list[dict[str, str]] | None:
    """All answers, with their types."""
    return [{"type": kind, "data": data} for kind, data in _records(value)] or None


def _context(field: str) -> Reader:
    """One line of PowerShell's ContextInfo (`Name = value`)."""

    def read(value: str) -> str | None:
        for line in value.splitlines():
            before, separator, after = line.partition(" = ")
            if separator and before.strip() == field:
                return name(after)
        return None

    return read


_context_user = _context("User")

READERS: dict[str, Reader] = {
    "name": name, "text": text, "path": name, "sid": sid, "guid": guid, "number": number, "pid": pid, "port": port,
    "exit_code": number, "ip": ip, "basename": basename, "dirname": dirname, "extension": extension,
    "user_name": user_name, "user_domain": user_domain, "common_name": common_name,
    "distinguished_domain": distinguished_domain, "logon_type": logon_type, "status": status,
    "failed_status": failed_status, "reason": reason, "kerberos": kerberos, "encryption": encryption,
    "service_start": service_start, "words": words, "hashes": hashes, "boolean": boolean, "direction": direction,
    "ip_version": ip_version, "hive": hive, "key": key, "resolved": resolved, "answers": answers,
    "lower": lambda value: name(value.lower()),
    "one": lambda value: [value] if value else None,
    "context_user": lambda value: user_name(_context_user(value) or ""),
    "context_domain": lambda value: user_domain(_context_user(value) or ""),
    "context_application": _context("Host Application"),
    "context_command": _context("Command Name"),
}  # fmt: skip
"""By the names that winevent_table.py uses."""
