"""Lines of Linux audit logs (auditd's audit.log): heads, fields, and the values that the kernel wrote as hex.

    [node=HOST ]type=SYSCALL msg=audit(1364481363.243:24287): arch=c000003e … exe="/bin/cat" key="k"\\x1dARCH=x86_64 …

Promises: any bytes give a Record or None (no audit line), in linear time; `raw` is the line as it came. A value that
was hex because its text had blanks, quotes or controls comes back as text; a value that stands for "none" is left out.
Refuses: joining records (auditd_join.py), naming what happened (auditd_ecs.py), numbers to names without a table here.

The format has no standard; what is read here is what the kernel (audit_log_untrustedstring) and audit-userspace write
(audit_encode_nv_string; ENRICHED: what auditd resolved itself follows the byte 0x1d).
"""

import ipaddress
import re
import struct
from binascii import unhexlify
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_HEAD = re.compile(rb"(?:node=([!-~]{1,255}) )?type=([!-~]{1,64}) msg=audit\((\d{1,11})\.(\d{3}):(\d{1,18})\): ?")
_PAIR = re.compile(r"""(?<![\w\[\]-])([A-Za-z_][\w\[\]-]{0,63})=("[^"]*"|'[^']*'|\{[^{}]*\}|\S*)""")
_MESSAGE = re.compile(r"""\bmsg=(?:'(.*)'|"(.*)")""", re.DOTALL)
_HEX = re.compile(r"(?:[0-9A-F]{2})+")
_ARGUMENT = re.compile(r"a(\d{1,6})(?:\[\d{1,6}\])?")
_VERDICT = re.compile(r"avc:\s+(\w+)\s+\{([^{}]*)\}")

_ENRICHED = b"\x1d"
_NONE = frozenset({"(null)", "(none)", "?", ""})
_ENCODED = frozenset({
    "acct", "cmd", "comm", "cwd", "data", "dir", "exe", "file", "grp", "invalid_context", "key", "name", "new_group",
    "ocomm", "path", "proctitle", "sw", "vm", "watch",
})  # fmt: skip
"""Fields whose unquoted value is hex. A plain word in one of them comes quoted, so "cafe" is never taken for bytes."""
UNSET = "4294967295"
"""(uid_t)-1: no login user, no session."""

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10


class Record(NamedTuple):
    """One audit line; `serial` and `seconds`.`milliseconds` (Unix time) name its event together with `node`."""

    node: str
    type: str
    seconds: int
    milliseconds: int
    serial: int
    body: bytes
    enriched: bytes
    raw: bytes

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What the records of one event have in common."""
        return self.node, self.seconds, self.milliseconds, self.serial


def parse_line(line: bytes) -> Record | None:
    """The record, None where the bytes are no audit line; `line` comes without its LF."""
    head = _HEAD.match(line)
    if head is None:
        return None
    node, kind, seconds, milliseconds, serial = head.groups()
    body, _, enriched = line[head.end() :].partition(_ENRICHED)
    return Record(
        node.decode() if node else "", kind.decode(), int(seconds), int(milliseconds), int(serial), body, enriched, line
    )


def fields_of(record: Record) -> dict[str, Any]:
    """The fields of a record's body, decoded; those inside of msg='…' count as the record's own.

    What is repeated becomes a list. The verdict of an AVC ("avc:  denied  { read write }") becomes `seresult` and
    `seperms`.
    """
    text = record.body.decode("utf-8", "replace")
    inner = _MESSAGE.search(text)
    found: dict[str, Any] = {}
    if inner is None:
        _collect(text, found)
    else:
        _collect(text[: inner.start()], found)
        _collect(inner[1] if inner[1] is not None else inner[2], found)
        _collect(text[inner.end() :], found)
    verdict = _VERDICT.search(text)
    if verdict is not None:
        found["seresult"], found["seperms"] = verdict[1], verdict[2].split()
    return found


def enriched_of(record: Record) -> dict[str, str]:
    """What auditd resolved when it wrote the line (log_format = ENRICHED), by lower-case name: {"uid": "root"}."""
    text = record.enriched.decode("utf-8", "replace")
    pairs = ((name.lower(), _unquoted(value)) for name, value in _PAIR.findall(text))
    return {name: value for name, value in pairs if value not in _NONE}


def _collect(text: str, found: dict[str, Any]) -> None:
    for name, value in _PAIR.findall(text):
        decoded = _decoded(name, value)
        if decoded is None:
            continue
        if name not in found:
            found[name] = decoded
        elif isinstance(found[name], list):
            found[name].append(decoded)
        else:
            found[name] = [found[name], decoded]


def _decoded(name: str, value: str) -> Any:
    if value in _NONE:
        return None
    if name in _ENCODED and _HEX.fullmatch(value):
        return _text_of(name, unhexlify(value))
    return _unquoted(value)


def _text_of(name: str, value: bytes) -> Any:
    """A command line and a list of keys come apart at the byte that stands between their items."""
    text = value.decode("utf-8", "replace").rstrip("\0")
    if name == "key" and "\1" in text:
        return text.split("\1")
    return text.replace("\0", " ") if name == "proctitle" else text


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] + value[-1] in ('""', "''", "{}") else value


def arguments(records: Iterable[Record], *, limit: int) -> list[str]:
    """argv of an event's EXECVE records, at most `limit` of them.

    `a0="ls" a1=2F746D70`: unquoted means hex. What is over the kernel's 7500 bytes comes in pieces, spread over several
    records: `a1_len=16000 a1[0]=… a1[1]=…`.
    """
    values: dict[int, bytes] = {}
    for record in records:
        for name, value in _PAIR.findall(record.body.decode("utf-8", "surrogateescape")):
            found = _ARGUMENT.fullmatch(name)
            if found is not None and int(found[1]) < limit:
                raw = unhexlify(value) if _HEX.fullmatch(value) else _unquoted(value).encode("utf-8", "surrogateescape")
                values[int(found[1])] = values.get(int(found[1]), b"") + raw
    return [values[index].decode("utf-8", "replace") for index in sorted(values)]


def socket_address(saddr: str) -> Mapping[str, Any]:
    """`family` (unix, ipv4, ipv6, or its number) and what that has of `path`, `address`, `port`; {} for no address."""
    try:
        raw = unhexlify(saddr)
        (family,) = struct.unpack_from("<H", raw)
        if family == _AF_INET:
            port, address = struct.unpack_from(">H4s", raw, 2)
            return {"family": "ipv4", "address": str(ipaddress.IPv4Address(address)), "port": port}
        if family == _AF_INET6:
            port, address = struct.unpack_from(">H4x16s", raw, 2)
            return {"family": "ipv6", "address": str(ipaddress.IPv6Address(address)), "port": port}
    except (ValueError, struct.error):  # cut short, or no hex
        return {}
    if family == _AF_UNIX:
        name = raw[2:]  # an abstract name starts with NUL (unix(7)); people write that as @
        path = b"@" + name[1:].rstrip(b"\0") if name[:1] == b"\0" and name.rstrip(b"\0") else name.partition(b"\0")[0]
        return {"family": "unix", "path": path.decode("utf-8", "replace")}
    return {"family": str(family)}
