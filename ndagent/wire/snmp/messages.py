"""Messages of SNMP v1, v2c (RFC 1157, 1901) and v3 (RFC 3412 §6, 3414 §2.4), and their PDUs: taken apart and made.

Promises: `open_message` and `open_pdu` raise Malformed and nothing else, in linear time; of the varbinds only the first
`most` are kept, all are walked and counted, so that a lie in the last one is seen.
Refuses: keys, digests and clocks (ndagent/core/snmp_usm.py), and what a varbind means (values.py).
"""

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import NamedTuple

from ndagent.wire.snmp import ber
from ndagent.wire.snmp.ber import Malformed

V1, V2C, V3 = 0, 1, 3
USM = 3  # the User-based Security Model (RFC 3411 §5)
MIN_MAX_SIZE = 484  # RFC 3412 §6: what every engine takes
OUR_MAX_SIZE = 65507  # the longest payload of UDP over IPv4
_IP_ADDRESS, _TIME_TICKS = 0x40, 0x43
_TRAP_V1_ADDRESS_BYTES = 4


class Kind(IntEnum):
    """PDUs by their tags (RFC 1157 §4.1, RFC 3416 §3)."""

    GET = 0xA0
    GET_NEXT = 0xA1
    RESPONSE = 0xA2
    SET = 0xA3
    TRAP_V1 = 0xA4
    GET_BULK = 0xA5
    INFORM = 0xA6
    TRAP = 0xA7
    REPORT = 0xA8


class Flag(IntFlag):
    """msgFlags (RFC 3412 §6.4)."""

    AUTH = 1
    PRIV = 2
    REPORTABLE = 4


class CommunityMessage(NamedTuple):
    """v1 or v2c; `pdu` is the whole value."""

    version: int
    community: bytes
    pdu: bytes


class SecuredMessage(NamedTuple):
    """v3 with USM; `scoped` is the whole ScopedPDU, or, with Flag.PRIV, what it was encrypted to.

    `whole` is the message from its first byte to its last, and `digest_at` where its authentication parameters start
    in there: the digest is over the message with zeros in their place (RFC 3414 §6.3.2).
    """

    message_id: int
    max_size: int
    flags: Flag
    engine_id: bytes
    boots: int
    time: int
    user: bytes
    digest: bytes
    salt: bytes
    scoped: bytes
    whole: bytes
    digest_at: int


class Scoped(NamedTuple):
    """A ScopedPDU (RFC 3412 §6.8); `pdu` is the whole value."""

    engine_id: bytes
    context: bytes
    pdu: bytes


class Varbind(NamedTuple):
    """A name and a value that nobody has read yet."""

    oid: str
    tag: int
    contents: bytes


class TrapV1(NamedTuple):
    """What only the Trap-PDU of v1 has (RFC 1157 §4.1.6)."""

    enterprise: str
    address: bytes
    generic: int
    specific: int
    ticks: int


class Pdu(NamedTuple):
    """One PDU; `omitted` varbinds came behind those kept. In one of v1, `trap` says what the first three numbers do."""

    kind: Kind
    request_id: int
    error_status: int
    error_index: int
    varbinds: list[Varbind]
    omitted: int
    trap: TrapV1 | None = None


def open_message(data: bytes) -> CommunityMessage | SecuredMessage:
    """A datagram as a message; bytes behind it are left alone, as every other receiver does."""
    at, end = ber.expect(data, 0, len(data), ber.SEQUENCE)
    version, at = ber.read_integer(data, at, end)
    if version == V3:
        return _secured(data, at, end)
    if version not in (V1, V2C):
        raise Malformed(f"version {version}")
    community, at = ber.read_octets(data, at, end)
    _, _, stop = ber.read(data, at, end)
    return CommunityMessage(version, community, data[at:stop])


def _secured(data: bytes, at: int, end: int) -> SecuredMessage:
    head, head_end = ber.expect(data, at, end, ber.SEQUENCE)
    message_id, head = ber.read_integer(data, head, head_end)
    max_size, head = ber.read_integer(data, head, head_end)
    flags, head = ber.read_octets(data, head, head_end)
    model, head = ber.read_integer(data, head, head_end)
    if not MIN_MAX_SIZE <= max_size < 2**31:
        raise Malformed(f"a greatest message of {max_size} bytes")
    if len(flags) != 1 or model != USM:
        raise Malformed(f"security model {model}, or flags of {len(flags)} bytes")
    if flags[0] & (Flag.AUTH | Flag.PRIV) == Flag.PRIV:
        raise Malformed("encrypted, but not authenticated")  # RFC 3412 §7.2 5 d
    at, security_end = ber.expect(data, head_end, end, ber.OCTET_STRING)
    at, security_end = ber.expect(data, at, security_end, ber.SEQUENCE)
    engine_id, at = ber.read_octets(data, at, security_end)
    boots, at = ber.read_integer(data, at, security_end)
    time, at = ber.read_integer(data, at, security_end)
    if not 0 <= boots < 2**31 or not 0 <= time < 2**31 or not 0 <= message_id < 2**31:  # RFC 3412 §6, 3414 §2.4
        raise Malformed(f"boots {boots}, time {time} or message id {message_id} out of range")
    user, at = ber.read_octets(data, at, security_end)
    digest, at = ber.read_octets(data, at, security_end)
    digest_at = at - len(digest)
    salt, at = ber.read_octets(data, at, security_end)
    tag = ber.OCTET_STRING if flags[0] & Flag.PRIV else ber.SEQUENCE
    start, stop = ber.expect(data, security_end, end, tag)
    return SecuredMessage(
        message_id=message_id, max_size=max_size, flags=Flag(flags[0] & 7), engine_id=engine_id, boots=boots, time=time,
        user=user, digest=digest, salt=salt, scoped=data[start if tag == ber.OCTET_STRING else security_end : stop],
        whole=data[:end], digest_at=digest_at,
    )  # fmt: skip


def open_scoped(data: bytes) -> Scoped:
    """A ScopedPDU in the clear; what decrypting left behind it (padding) is left alone."""
    at, end = ber.expect(data, 0, len(data), ber.SEQUENCE)
    engine_id, at = ber.read_octets(data, at, end)
    context, at = ber.read_octets(data, at, end)
    _, _, stop = ber.read(data, at, end)
    return Scoped(engine_id, context, data[at:stop])


def open_pdu(data: bytes, *, most: int) -> Pdu:
    """A whole PDU with at most so many varbinds."""
    tag, at, end = ber.read(data, 0, len(data))
    if tag not in Kind.__members__.values():
        raise Malformed(f"tag {tag:#04x} where a PDU belongs")
    kind = Kind(tag)
    if kind is Kind.TRAP_V1:
        trap, at = _trap_v1(data, at, end)
        return Pdu(kind, 0, 0, 0, *_varbinds(data, at, end, most), trap)
    request_id, at = ber.read_integer(data, at, end)
    status, at = ber.read_integer(data, at, end)
    index, at = ber.read_integer(data, at, end)
    return Pdu(kind, request_id, status, index, *_varbinds(data, at, end, most))


def _trap_v1(data: bytes, at: int, end: int) -> tuple[TrapV1, int]:
    start, stop = ber.expect(data, at, end, ber.OID)
    enterprise = ber.oid(data[start:stop])
    start, stop = ber.expect(data, stop, end, _IP_ADDRESS)
    address = data[start:stop]
    if len(address) != _TRAP_V1_ADDRESS_BYTES:
        raise Malformed(f"an agent address of {len(address)} bytes")
    generic, at = ber.read_integer(data, stop, end)
    specific, at = ber.read_integer(data, at, end)
    start, stop = ber.expect(data, at, end, _TIME_TICKS)
    return TrapV1(enterprise, address, generic, specific, ber.unsigned(data[start:stop])), stop


def _varbinds(data: bytes, at: int, end: int, most: int) -> tuple[list[Varbind], int]:
    at, end = ber.expect(data, at, end, ber.SEQUENCE)
    found: list[Varbind] = []
    omitted = 0
    while at < end:
        start, stop = ber.expect(data, at, end, ber.SEQUENCE)
        if len(found) == most:
            omitted += 1
        else:
            name, name_end = ber.expect(data, start, stop, ber.OID)
            tag, value, value_end = ber.read(data, name_end, stop)
            found.append(Varbind(ber.oid(data[name:name_end]), tag, data[value:value_end]))
        at = stop
    return found, omitted


# ---- making


def make_response(pdu: bytes) -> bytes:
    """The Response to a whole InformRequest: the same but for its tag (RFC 3416 §4.2.7)."""
    _, start, stop = ber.read(pdu, 0, len(pdu))
    return ber.value(Kind.RESPONSE, pdu[start:stop])


def make_pdu(
    kind: Kind, request_id: int, varbinds: Iterable[tuple[str, bytes]], *, second: int = 0, third: int = 0
) -> bytes:
    """A whole PDU; each varbind's value is a whole one. `second` and `third`: non-repeaters, max-repetitions."""
    pairs = [ber.value(ber.SEQUENCE, ber.from_oid(name), value) for name, value in varbinds]
    numbers = map(ber.from_integer, (request_id, second, third))
    return ber.value(kind, *numbers, ber.value(ber.SEQUENCE, *pairs))


def make_community_message(version: int, community: bytes, pdu: bytes) -> bytes:
    """A whole message of v1 or v2c."""
    return ber.value(ber.SEQUENCE, ber.from_integer(version), ber.from_octets(community), pdu)


def make_scoped(engine_id: bytes, context: bytes, pdu: bytes) -> bytes:
    """A whole ScopedPDU."""
    return ber.value(ber.SEQUENCE, ber.from_octets(engine_id), ber.from_octets(context), pdu)


class Security(NamedTuple):
    """UsmSecurityParameters of a message to be made; `digest_bytes` zeros stand where the digest comes."""

    engine_id: bytes
    boots: int
    time: int
    user: bytes
    digest_bytes: int
    salt: bytes


def make_secured(message_id: int, flags: Flag, security: Security, scoped: bytes) -> tuple[bytes, int]:
    """A whole v3 message and where its digest belongs; `scoped` is encrypted if the flags say so."""
    tail = ber.from_octets(security.salt)
    parameters = ber.value(
        ber.SEQUENCE, ber.from_octets(security.engine_id), ber.from_integer(security.boots),
        ber.from_integer(security.time), ber.from_octets(security.user), ber.from_octets(bytes(security.digest_bytes)),
        tail,
    )  # fmt: skip
    data = ber.from_octets(scoped) if flags & Flag.PRIV else scoped
    head = ber.value(
        ber.SEQUENCE, ber.from_integer(message_id), ber.from_integer(OUR_MAX_SIZE), ber.from_octets(bytes((flags,))),
        ber.from_integer(USM),
    )  # fmt: skip
    whole = ber.value(ber.SEQUENCE, ber.from_integer(V3), head, ber.from_octets(parameters), data)
    return whole, len(whole) - len(data) - len(tail) - security.digest_bytes
