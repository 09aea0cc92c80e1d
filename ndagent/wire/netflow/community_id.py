"""Community ID 1.0 (https://github.com/corelight/community-id-spec): the same text for both directions of a flow.

Promises: seed 0; addresses as 4 or 16 octets; ports of TCP, UDP and SCTP; type and code of ICMP, paired where the
protocol pairs them. Refuses: nothing; a protocol without ports has the addresses alone.
"""

import struct
from binascii import b2a_base64
from hashlib import sha1

_PORTS = struct.Struct(">HH")
HAS_PORTS = frozenset({6, 17, 132})
"""TCP, UDP and SCTP."""
_OF_FOUR = struct.Struct(">HIIBBHH")
_ICMP, _ICMPV6 = 1, 58
# Requests and their replies (RFC 792, 950, 1256; RFC 4443, 2710, 4861, 4620, 3122 …), as the specification lists them.
_ICMP_PAIRS = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17, 10: 9, 9: 10}
_ICMPV6_PAIRS = {
    128: 129, 129: 128, 133: 134, 134: 133, 135: 136, 136: 135, 130: 131, 131: 130, 144: 145, 145: 144, 139: 140,
    140: 139,
}  # fmt: skip


def community_id(source: bytes, destination: bytes, protocol: int, ports: tuple[int, int]) -> bytes:
    """`ports`: source and destination port; of ICMP type and code; else not looked at."""
    if protocol in HAS_PORTS:
        near, far = ports
        is_swapped = (source, near) > (destination, far)
        tail = _PORTS.pack(far, near) if is_swapped else _PORTS.pack(near, far)
    elif protocol in (_ICMP, _ICMPV6):
        is_swapped, tail = _of_icmp(source, destination, protocol, ports)
    else:
        is_swapped, tail = source > destination, b""
    pair = destination + source if is_swapped else source + destination
    digest = sha1(b"\0\0%b%c\0%b" % (pair, protocol, tail), usedforsecurity=False).digest()
    return b"1:" + b2a_base64(digest, newline=False)


def community_id_of_four(source: int, destination: int, protocol: int, near: int, far: int) -> bytes:
    """The same for IPv4 addresses as numbers and a protocol that HAS_PORTS: nearly every flow, in half the time."""
    if source > destination or (source == destination and near > far):
        source, destination, near, far = destination, source, far, near
    packed = _OF_FOUR.pack(0, source, destination, protocol, 0, near, far)
    return b"1:" + b2a_base64(sha1(packed, usedforsecurity=False).digest(), newline=False)


def _of_icmp(source: bytes, destination: bytes, protocol: int, ports: tuple[int, int]) -> tuple[bool, bytes]:
    """A type that has no counterpart goes one way: it is never swapped."""
    kind, code = ports
    counterpart = (_ICMP_PAIRS if protocol == _ICMP else _ICMPV6_PAIRS).get(kind)
    if counterpart is None:
        return False, _PORTS.pack(kind, code)
    if (source, kind) > (destination, counterpart):
        return True, _PORTS.pack(counterpart, kind)
    return False, _PORTS.pack(kind, counterpart)
