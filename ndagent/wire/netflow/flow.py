"""Which elements of a flow are which fields of Elastic Common Schema.

Promises: a template's elements that ECS has a field for, as members of the line's objects, each with what makes its
values out of whole columns; `used` says which columns are told by that. Refuses: guessing. An address that is not in
the template is not in the line; what is zero for "none" (AS numbers, VLANs, MAC addresses) is left out.

Ports are what the exporter says: of ICMP, NetFlow v5 has type and code in the destination port.
"""

from collections.abc import Sequence
from operator import add, mul
from typing import NamedTuple

from ndagent.wire.netflow.community_id import HAS_PORTS, community_id, community_id_of_four
from ndagent.wire.netflow.elements import IANA, REVERSE
from ndagent.wire.netflow.parts import Maker, Part, Stepped, constant, mapped, observer, taken
from ndagent.wire.netflow.steps import Op, Step
from ndagent.wire.netflow.template import Template
from ndagent.wire.netflow.times import FlowTimes
from ndagent.wire.netflow.values import IPV4, IPV6, MAC, Texts

_TRANSPORTS = {
    1: "icmp", 2: "igmp", 4: "ipv4", 6: "tcp", 8: "egp", 17: "udp", 33: "dccp", 41: "ipv6", 46: "rsvp", 47: "gre",
    50: "esp", 51: "ah", 58: "ipv6-icmp", 88: "eigrp", 89: "ospfigp", 103: "pim", 108: "ipcomp", 112: "vrrp",
    115: "l2tp", 132: "sctp", 136: "udplite",
}  # fmt: skip  # IANA's keywords, lower case as ECS wants them
_DIRECTIONS = {0: b"inbound", 1: b"outbound"}  # RFC 5102 flowDirection: at the observation point


class _Member(NamedTuple):
    """A member of a JSON object; `optional` makes it whole with the comma before it, or empty."""

    text: bytes
    makers: tuple[Maker, ...]
    optional: Maker | None = None


def _transport(number: int) -> bytes:
    name = _TRANSPORTS.get(number)
    known = b'"transport":"%b",' % name.encode() if name else b""
    return b'%b"iana_number":"%d"' % (known, number)


_TRANSPORT = Texts(_transport, most=256)
_DIRECTION = Texts(lambda number: _DIRECTIONS.get(number, b"unknown"), most=256)
_AS = Texts(lambda number: b',"as":{"number":%d}' % number if number else b"", most=32768)
_VERSION = Texts(lambda number: b"ipv6" if number == 6 else b"ipv4", most=256)
_MAC = Texts(lambda octets: b',"mac":"%b"' % MAC[octets] if any(octets) else b"", most=4096)
_VLAN = Texts(lambda number: b',"vlan":{"id":"%d"}' % number if number else b"", most=4096)

_SOURCE_BYTES = ((IANA, 1), (IANA, 85), (IANA, 231))
_SOURCE_PACKETS = ((IANA, 2), (IANA, 86), (IANA, 298))
_DESTINATION_BYTES = ((REVERSE, 1), (REVERSE, 85), (IANA, 232))
_DESTINATION_PACKETS = ((REVERSE, 2), (REVERSE, 86), (IANA, 299))


class FlowParts:
    """The members for one template; `rate_at`: the column of sampling rates, where counts are to be multiplied.

    `has_uptime`: the context will say the exporter's uptime.
    """

    def __init__(self, template: Template, *, rate_at: int | None, has_uptime: bool, community_ids: bool) -> None:
        self._places = template.places
        self._rate_at = rate_at
        self._community_ids = community_ids
        times = FlowTimes(self._places, has_uptime=has_uptime)
        self.used = times.used
        self.times = times.part
        """Members of `event`."""
        source = self._end("source", (8, 27), (7, 182, 180), (56, 16), (_SOURCE_BYTES, _SOURCE_PACKETS))
        far_counts = (_DESTINATION_BYTES, _DESTINATION_PACKETS)
        destination = self._end("destination", (12, 28), (11, 183, 181), (80, 17), far_counts)
        self.objects = [source, destination, self._network(), self._observer()]
        """Members of the event."""

    # ---- finding columns

    def _at(self, *elements: int) -> int | None:
        """The column of the first of these that is there, which is told by that."""
        return self._of(*((IANA, number) for number in elements))

    def _of(self, *elements: tuple[int, int], is_told: bool = True) -> int | None:
        at = next((self._places[one] for one in elements if one in self._places), None)
        if at is not None and is_told:
            self.used.add(at)
        return at

    def _counts(self, elements: Sequence[tuple[int, int]]) -> Maker | None:
        """Bytes or packets; what was counted stays told under `netflow` where it is not what is meant."""
        rate_at = self._rate_at
        at = self._of(*elements, is_told=rate_at is None)
        if at is None:
            return None
        if rate_at is None:
            return taken(at)
        return Stepped(lambda columns, _: map(mul, columns[at], columns[rate_at]), Step(Op.PRODUCT, (at,)))

    # ---- objects

    def _end(
        self,
        name: str,
        addresses: tuple[int, int],
        ports: tuple[int, ...],
        others: tuple[int, int],
        counts: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]],
    ) -> Part:
        """`source` or `destination`."""
        members: list[_Member] = []
        address = self._address(*addresses)
        if address is not None:
            members.append(_Member(b'"ip":"%b"', (address,)))
        port, mac, number = self._at(*ports), self._at(others[0]), self._at(others[1])
        if port is not None:
            members.append(_Member(b'"port":%d', (taken(port),)))
        for key, elements in ((b"bytes", counts[0]), (b"packets", counts[1])):
            made = self._counts(elements)
            if made is not None:
                members.append(_Member(b'"%b":%%d' % key, (made,)))
        if mac is not None:
            members.append(_Member(b'"mac":"%b"', (mapped(mac, MAC.__getitem__),), mapped(mac, _MAC.__getitem__)))
        if number is not None:
            members.append(_Member(b'"as":{"number":%d}', (taken(number),), mapped(number, _AS.__getitem__)))
        return _object(name.encode(), members)

    def _address(self, four: int, six: int) -> Maker | None:
        near, far = self._at(four), self._at(six)
        if near is not None and far is not None:
            return lambda columns, _: map(_either, columns[near], columns[far])
        if near is not None:
            return mapped(near, IPV4.__getitem__)
        return None if far is None else mapped(far, IPV6.__getitem__)

    def _network(self) -> Part:
        members: list[_Member] = []
        kind = self._type()
        if kind is not None:
            members.append(_Member(b'"type":"%b"', (kind,)))
        protocol = self._at(4)
        if protocol is not None:
            members.append(_Member(b"%b", (mapped(protocol, _TRANSPORT.__getitem__),)))
        for key, there, back in (
            (b"bytes", _SOURCE_BYTES, _DESTINATION_BYTES),
            (b"packets", _SOURCE_PACKETS, _DESTINATION_PACKETS),
        ):
            made = self._sum(there, back)
            if made is not None:
                members.append(_Member(b'"%b":%%d' % key, (made,)))
        direction = self._at(61)
        if direction is not None:
            members.append(_Member(b'"direction":"%b"', (mapped(direction, _DIRECTION.__getitem__),)))
        vlan = self._at(243)
        if vlan is not None:
            members.append(_Member(b'"vlan":{"id":"%d"}', (taken(vlan),), mapped(vlan, _VLAN.__getitem__)))
        identity = self._identity(protocol) if self._community_ids else None
        if identity is not None:
            members.append(_Member(b'"community_id":"%b"', (identity,)))
        return _object(b"network", members)

    def _type(self) -> Maker | None:
        """By the addresses; where both kinds are in the template, by the version that the record says."""
        four, six, version = ((IANA, number) in self._places for number in (8, 27, 60))
        if four != six:
            self._at(60)
            return constant(b"ipv4" if four else b"ipv6")
        if not version:
            return None
        at = self._at(60)
        assert at is not None  # noqa: S101 - seen above
        return mapped(at, _VERSION.__getitem__)

    def _sum(self, there: Sequence[tuple[int, int]], back: Sequence[tuple[int, int]]) -> Maker | None:
        near, far = self._counts(there), self._counts(back)
        if near is None or far is None:
            return near or far
        return lambda columns, context: map(add, near(columns, context), far(columns, context))

    def _identity(self, protocol: int | None) -> Maker | None:
        """Community ID, where there is all that it is made of, and addresses of one kind."""
        four = (self._places.get((IANA, 8)), self._places.get((IANA, 12)))
        six = (self._places.get((IANA, 27)), self._places.get((IANA, 28)))
        source, destination = four if None in six else six
        near, far = (self._places.get((IANA, number)) for number in (7, 11))
        if protocol is None or source is None or destination is None or near is None or far is None:
            return None
        if None not in (*four, *six):
            return None
        kinds = [self._places[IANA, number] for number in (32, 139) if (IANA, number) in self._places]
        columns_of = (source, destination, protocol, near, far, kinds[0] if kinds else far)
        make = _identity_of_six if None in four else _identity_of_four
        return Stepped(
            lambda columns, _: map(make, *(columns[at] for at in columns_of)), Step(Op.IDENTITY, columns_of, make)
        )

    def _observer(self) -> Part:
        """The exporter, and the interfaces through which it saw the flow."""
        text = b',"observer":{%b'
        makers: list[Maker] = [observer]
        for way, interface, vlan in ((b"ingress", 10, 58), (b"egress", 14, 59)):
            found = self._at(interface)
            if found is None:
                continue  # and a VLAN alone says nothing of the way
            members = [_Member(b'"interface":{"id":"%d"}', (taken(found),))]
            tagged = self._at(vlan)
            if tagged is not None:
                members.append(_Member(b'"vlan":{"id":"%d"}', (taken(tagged),), mapped(tagged, _VLAN.__getitem__)))
            part = _object(way, members)
            text += part.text
            makers += part.makers
        return Part(text + b"}", tuple(makers))


def _object(name: bytes, members: Sequence[_Member]) -> Part:
    """A JSON object with the comma before it; nothing where it would be empty."""
    text, makers = b"", []
    for member in members:
        if member.optional is not None and text:
            text += b"%b"
            makers.append(member.optional)
        else:
            text += (b"," if text else b"") + member.text
            makers += member.makers
    return Part(b',"%b":{%b}' % (name, text) if text else b"", tuple(makers))


def _either(four: int, six: bytes) -> bytes:
    """A record that has both kinds of address leaves one of them zero."""
    return IPV4[four] if four or not any(six) else IPV6[six]


def _identity_of_four(source: int, destination: int, protocol: int, near: int, far: int, kind: int) -> bytes:
    if protocol in HAS_PORTS and near <= 0xFFFF >= far:
        return community_id_of_four(source, destination, protocol, near, far)
    return _identity(source.to_bytes(4), destination.to_bytes(4), protocol, near, far, kind)


def _identity_of_six(source: bytes, destination: bytes, protocol: int, near: int, far: int, kind: int) -> bytes:
    return _identity(source, destination, protocol, near, far, kind)


def _identity(source: bytes, destination: bytes, protocol: int, near: int, far: int, kind: int) -> bytes:
    if protocol in (1, 58):  # ICMP: type * 256 + code, in an element of its own or in the destination port
        return community_id(source, destination, protocol, (kind >> 8 & 255, kind & 255))
    return community_id(source, destination, protocol & 255, (near & 0xFFFF, far & 0xFFFF))
