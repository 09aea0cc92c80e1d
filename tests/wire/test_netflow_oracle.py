"""Other people's decoders over the same datagrams: the names of elements, and the figures of flows."""

import random
import struct
from typing import Any

import netflow
import orjson
import pytest
from communityid import CommunityID, FlowTuple
from netflow.ipfix import IPFIXFieldTypes
from netflow_datagrams import NOON, ipfix, lines_of, pack_set, template, v5, v5_flow, v9

from ndagent.wire.netflow.community_id import community_id, community_id_of_four
from ndagent.wire.netflow.decoder import FlowDecoder
from ndagent.wire.netflow.elements import ELEMENTS

DICE = random.Random(7)  # the same datagrams each time
FIELDS = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (1, 4), (2, 4), (6, 1), (5, 1), (10, 4), (16, 4)]


def record() -> bytes:
    """One of FIELDS."""
    draw = DICE.getrandbits
    addresses = struct.pack(">II", draw(32), draw(32))
    return addresses + struct.pack(
        ">HHBIIBBII", draw(16), draw(16), 6, draw(32), draw(32), draw(8), draw(8), draw(32), draw(32) | 1
    )


def ours(*datagrams: bytes) -> list[dict[str, Any]]:
    """What we make of them."""
    decoder = FlowDecoder()
    return [orjson.loads(line) for data in datagrams for line in lines_of(decoder, "192.0.2.9", data, now=NOON)]


def test_names_are_those_of_the_registry() -> None:
    """As the package has them from IANA's table."""
    theirs = {
        number: name for number, name, _ in IPFIXFieldTypes.iana_field_types if name not in ("Assigned", "Reserved")
    }
    common = theirs.keys() & ELEMENTS.keys()
    assert len(common) > 300
    different = {n: (ELEMENTS[n].name, theirs[n]) for n in common if ELEMENTS[n].name.lower() != theirs[n].lower()}
    assert different == {}


def figures(event: dict[str, Any]) -> tuple[object, ...]:
    """What both have of a flow."""
    source, destination = event["source"], event["destination"]
    return (
        source["ip"], destination["ip"], source["port"], destination["port"], source["bytes"], source["packets"],
        event["netflow"]["tcpControlBits"], event["netflow"]["ipClassOfService"],
    )  # fmt: skip


@pytest.mark.parametrize("version", [9, 10])
def test_flows_of_templates(version: int) -> None:
    """Random values in every field."""
    make, shape_id = (v9, 0) if version == 9 else (ipfix, 2)
    shape = make(pack_set(shape_id, template(256, FIELDS)))
    data = make(pack_set(256, b"".join(record() for _ in range(30))), sequence=1 if version == 9 else 0)
    templates: dict[str, Any] = {"netflow": {}, "ipfix": {}}
    netflow.parse_packet(shape, templates)
    theirs = [flow.data for flow in netflow.parse_packet(data, templates).flows]
    names = (
        "IPV4_SRC_ADDR",
        "IPV4_DST_ADDR",
        "L4_SRC_PORT",
        "L4_DST_PORT",
        "IN_BYTES",
        "IN_PKTS",
        "TCP_FLAGS",
        "SRC_TOS",
    )
    if version == 10:
        names = (
            "sourceIPv4Address", "destinationIPv4Address", "sourceTransportPort", "destinationTransportPort",
            "octetDeltaCount", "packetDeltaCount", "tcpControlBits", "ipClassOfService",
        )  # fmt: skip
    assert [figures(event) for event in ours(shape, data)] == [
        tuple(_text(flow[name]) if "ddr" in name.lower() else flow[name] for name in names) for flow in theirs
    ]


def test_flows_of_version_5() -> None:
    """Random values, too."""
    draw = DICE.getrandbits
    flows = [
        v5_flow(draw(32), draw(32), bytes=draw(32), packets=draw(32), sport=draw(16), flags=draw(8), tos=draw(8))
        for _ in range(30)
    ]
    theirs = [flow.data for flow in netflow.parse_packet(v5(*flows), {"netflow": {}, "ipfix": {}}).flows]
    names = ("IPV4_SRC_ADDR", "IPV4_DST_ADDR", "SRC_PORT", "DST_PORT", "IN_OCTETS", "IN_PACKETS", "TCP_FLAGS", "TOS")
    assert [figures(event) for event in ours(v5(*flows))] == [
        tuple(_text(flow[name]) if "ADDR" in name else flow[name] for name in names) for flow in theirs
    ]


def _text(address: object) -> object:
    return "{}.{}.{}.{}".format(*struct.pack(">I", address)) if isinstance(address, int) else address


def test_community_ids_are_corelight_s() -> None:
    """Every protocol that is told apart, either way round, of both kinds of address."""
    oracle = CommunityID()
    for _ in range(3000):
        length = DICE.choice((4, 16))
        source, destination = DICE.randbytes(length), DICE.randbytes(length)
        protocol = DICE.choice((6, 17, 132, 1, 58, 47))
        most = 20 if protocol == 1 else 150 if protocol == 58 else 65535
        ports = (DICE.randint(0, most), DICE.randint(0, 255))
        told = ports if protocol != 47 else (None, None)
        expected = oracle.calc(FlowTuple(protocol, source, destination, *told)).encode()
        assert community_id(source, destination, protocol, ports) == expected
        if length == 4 and protocol in (6, 17, 132):
            addresses = (int.from_bytes(source), int.from_bytes(destination))
            assert community_id_of_four(*addresses, protocol, *ports) == expected
