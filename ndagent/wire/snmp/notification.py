"""A trap or inform of any version as one ECS line.

Promises:
  * a v1 trap is told as the same trap of v2c (RFC 3584 §3.1), and what only v1 has beside it;
  * every varbind is in the event, in order, up to the caller's limit; how many were left out is said and tagged;
  * `snmp.agent_address` is the device's own word where a v1 trap or a proxy (snmpTrapAddress) carries one, and then the
    `observer`; else that is the sender;
  * no line has an `event.id` (the spool gives it), and `"event":{"` stands in it exactly once; no community is in it.
Refuses: PDUs that are no notifications (`is_notification`), clocks.
"""

from ipaddress import IPv4Address
from typing import Any, NamedTuple

import orjson

from ndagent.wire.ecs import ECS_VERSION
from ndagent.wire.snmp import ber, names, values
from ndagent.wire.snmp.ber import Malformed
from ndagent.wire.snmp.messages import Kind, Pdu, TrapV1, Varbind

NOTIFICATIONS = frozenset({Kind.TRAP_V1, Kind.TRAP, Kind.INFORM})
SYS_UP_TIME = "1.3.6.1.2.1.1.3.0"
SNMP_TRAP_OID = "1.3.6.1.6.3.1.1.4.1.0"
_ENTERPRISE = "1.3.6.1.6.3.1.1.4.3.0"
_ADDRESS = "1.3.6.1.6.3.18.1.3.0"
_TRAPS = "1.3.6.1.6.3.1.1.5"
_ENTERPRISE_SPECIFIC = 6
_MOST_TICKS = 2**32 - 1  # RFC 2578 §7.1.8
_MESSAGE_CHARACTERS = 1024
_VALUE_CHARACTERS = 256


class Sender(NamedTuple):
    """What the message around a PDU says, as members of `snmp`, and where it came from."""

    address: str
    port: int
    facts: dict[str, Any]


class Limits(NamedTuple):
    """What one event may hold."""

    value_bytes: int


class _Trap(NamedTuple):
    """What v1 and v2 say in different places."""

    oid: str
    ticks: int | None
    enterprise: str
    address: str
    more: dict[str, Any]


def is_notification(pdu: Pdu) -> bool:
    """Whether this PDU may be given to `line`."""
    return pdu.kind in NOTIFICATIONS


def line(pdu: Pdu, sender: Sender, *, moment: str, limits: Limits, constants: bytes = b"") -> tuple[bytes, bool]:
    """The event with its LF, and whether something was cut off it; raises Malformed.

    `constants` are members with a comma behind each.
    """
    trap = _v1(pdu.trap) if pdu.trap is not None else _v2(pdu.varbinds)
    mib, name, about = names.notification(trap.oid)
    binds = [values.described(one, most_bytes=limits.value_bytes) for one in pdu.varbinds]
    snmp: dict[str, Any] = {**sender.facts, "pdu": "inform" if pdu.kind is Kind.INFORM else "trap"}
    snmp["trap"] = {"oid": trap.oid, **({"name": name, "mib": mib} if name else {})}
    if trap.ticks is not None and trap.ticks <= _MOST_TICKS:  # else it is no uptime; its varbind is told
        snmp["uptime"] = {"ticks": trap.ticks, "ms": trap.ticks * 10}
    if trap.enterprise:
        snmp["enterprise"] = {"oid": trap.enterprise}
    vendor = names.vendor(trap.enterprise or trap.oid)
    snmp |= trap.more
    if pdu.trap is None:
        snmp["request_id"] = pdu.request_id
    snmp["varbinds"] = binds
    is_cut = pdu.omitted > 0 or any("truncated" in bind for bind in binds)
    if pdu.omitted:
        snmp["varbinds_omitted"] = pdu.omitted
    event = {"kind": "event", "category": [about.category], "type": [about.type], "action": name or "snmp_trap"}
    event |= {"code": trap.oid, "created": moment, **({"outcome": about.outcome} if about.outcome else {})}
    document: dict[str, Any] = {
        "@timestamp": moment,
        "ecs": {"version": ECS_VERSION.decode()},
        "event": event,
        "message": _message(f"{mib}::{name}" if name else trap.oid, binds),
        "source": {"ip": sender.address, "port": sender.port},
        "observer": {"ip": trap.address or sender.address, **({"vendor": vendor} if vendor else {})},
        "snmp": snmp,
    }
    if is_cut:
        document["tags"] = ["_truncated"]
    return b"{" + constants + orjson.dumps(document)[1:] + b"\n", is_cut


def _v1(trap: TrapV1) -> _Trap:
    """RFC 3584 §3.1 (2): the generic traps have numbers of their own, the others hang below their enterprise."""
    if 0 <= trap.generic < _ENTERPRISE_SPECIFIC:
        oid = f"{_TRAPS}.{trap.generic + 1}"
    else:
        oid = f"{trap.enterprise}.0.{trap.specific}"
    address = str(IPv4Address(trap.address))
    more = {"generic_trap": trap.generic, "specific_trap": trap.specific, "agent_address": address}
    known = address if any(trap.address) else ""
    return _Trap(oid, trap.ticks, trap.enterprise, known, more)


def _v2(varbinds: list[Varbind]) -> _Trap:
    """RFC 3416 §4.2.6: the first two are sysUpTime.0 and snmpTrapOID.0; some devices order them otherwise."""
    oid, ticks, enterprise, address = "", None, "", ""
    more: dict[str, Any] = {}
    for one in varbinds:
        if one.oid == SNMP_TRAP_OID and one.tag == ber.OID:
            oid = oid or ber.oid(one.contents)
        elif one.oid == SYS_UP_TIME and one.tag == values.TIME_TICKS:
            ticks = ber.unsigned(one.contents) if ticks is None else ticks
        elif one.oid == _ENTERPRISE and one.tag == ber.OID:
            enterprise = ber.oid(one.contents)
        elif one.oid == _ADDRESS and one.tag == values.IP_ADDRESS and len(one.contents) == 4:
            address = str(IPv4Address(one.contents))
            more["agent_address"] = address
    if not oid:
        raise Malformed("a notification without snmpTrapOID.0")
    return _Trap(oid, ticks, enterprise, address, more)


def _message(name: str, binds: list[dict[str, Any]]) -> str:
    """One line for people: the trap and what it carries, but for what every trap does."""
    pieces, left = [name], _MESSAGE_CHARACTERS - len(name)
    for bind in binds:
        if bind["oid"] in (SYS_UP_TIME, SNMP_TRAP_OID):
            continue
        value = str(bind.get("value", bind.get("hex", "")))
        piece = f"{bind['name'].rpartition('::')[2]}={value[:_VALUE_CHARACTERS]}"
        left -= len(piece) + 1
        if left < 0:
            pieces.append("…")
            break
        pieces.append(piece)
    return " ".join(pieces)
