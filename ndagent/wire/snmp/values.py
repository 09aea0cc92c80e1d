"""Values of varbinds, by their types (RFC 2578 §7, RFC 3416 §3): as text, as number, as bytes in hexadecimal.

Promises: a value of any type, a lying one too, becomes text, a number or hexadecimal, never an error except Malformed
(a number or an address of an impossible length). Text is what is UTF-8 without control characters; everything else is
hexadecimal, whole. Nothing is longer than the caller allows; what was cut is said.
"""

import struct
from ipaddress import ip_address
from typing import Any

from ndagent.wire.snmp import ber, names
from ndagent.wire.snmp.ber import Malformed
from ndagent.wire.snmp.messages import Varbind

IP_ADDRESS, COUNTER32, GAUGE32, TIME_TICKS, OPAQUE, COUNTER64 = 0x40, 0x41, 0x42, 0x43, 0x44, 0x46
TYPES = {
    ber.INTEGER: "integer", ber.OCTET_STRING: "octet_string", ber.NULL: "null", ber.OID: "oid",
    IP_ADDRESS: "ip_address", COUNTER32: "counter32", GAUGE32: "gauge32", TIME_TICKS: "timeticks", OPAQUE: "opaque",
    COUNTER64: "counter64", 0x80: "no_such_object", 0x81: "no_such_instance", 0x82: "end_of_mib_view",
}  # fmt: skip
UNSIGNED = frozenset({COUNTER32, GAUGE32, TIME_TICKS, COUNTER64})
_WITHOUT_VALUE = frozenset({ber.NULL, 0x80, 0x81, 0x82})
_COMMUNITY = "1.3.6.1.6.3.18.1.4."  # snmpTrapCommunity (RFC 3584 §4): a password, as far as v1 and v2c have one
_MAC = "IF-MIB::ifPhysAddress"
_MAC_BYTES = 6
_LARGEST_LONG = 2**63 - 1  # what receivers keep a number in
_OPAQUE_FLOAT, _OPAQUE_DOUBLE = b"\x9f\x78\x04", b"\x9f\x79\x08"  # Net-SNMP's, used by UCD-SNMP-MIB
_CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127])


def number(varbind: Varbind) -> int | None:
    """The number that a varbind's value is, None for other types; raises Malformed."""
    if varbind.tag == ber.INTEGER:
        return ber.integer(varbind.contents)
    return ber.unsigned(varbind.contents) if varbind.tag in UNSIGNED else None


def described(varbind: Varbind, *, most_bytes: int) -> dict[str, Any]:
    """A varbind as it stands in an event: oid, name, type, and value, number or hex."""
    oid, tag, contents = varbind
    name, known = names.object_name(oid)
    found: dict[str, Any] = {"oid": oid, "name": name, "type": TYPES.get(tag, f"0x{tag:02x}")}
    if oid.startswith(_COMMUNITY):
        return found | {"value": "(not shown)"}
    if len(contents) > most_bytes:
        found["truncated"] = len(contents)
        contents = contents[:most_bytes]
        return found | (_octets(contents) if tag == ber.OCTET_STRING else {"hex": contents.hex()})
    if tag in _WITHOUT_VALUE:
        return found
    if tag == ber.OCTET_STRING:
        if known is not None and known.name == _MAC and len(contents) == _MAC_BYTES:
            return found | {"value": contents.hex("-").upper()}  # ECS' way to write one
        return found | _octets(contents)
    if tag == ber.OID:
        return found | {"value": names.value_name(ber.oid(contents))}
    if tag == IP_ADDRESS:
        return found | {"value": _address(contents)}
    value = number(varbind)
    if value is None:
        return found | _opaque(contents)
    words = known.words if known is not None else {}
    found["value"] = words.get(value, str(value))
    if value <= _LARGEST_LONG:
        found["number"] = value
    return found


def text(contents: bytes) -> str | None:
    """Octets as text, without the NULs that some devices put behind it; None where they are none."""
    try:
        found = contents.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None
    return found if found.translate(_CONTROLS) == found else None


def _octets(contents: bytes) -> dict[str, Any]:
    found = text(contents)
    if found is None:
        return {"hex": contents.hex()}
    return {"value": found} if not contents.endswith(b"\0") else {"value": found, "hex": contents.hex()}


def _address(contents: bytes) -> str:
    if len(contents) not in (4, 16):
        raise Malformed(f"an address of {len(contents)} bytes")
    return str(ip_address(contents))


def _opaque(contents: bytes) -> dict[str, Any]:
    for head, form in ((_OPAQUE_FLOAT, ">f"), (_OPAQUE_DOUBLE, ">d")):
        if contents.startswith(head) and len(contents) == len(head) + struct.calcsize(form):
            (value,) = struct.unpack(form, contents[len(head) :])
            return {"value": f"{value:g}", "hex": contents.hex()}
    return {"hex": contents.hex()}
