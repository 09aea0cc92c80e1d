"""NetFlow and IPFIX decoded: datagrams written after the RFCs' own examples, and what their fields become."""

import math
import struct
from typing import Any

import orjson
import pytest
from netflow_datagrams import (
    NOON,
    ipfix,
    lines_of,
    options_template,
    pack_set,
    template,
    v5,
    v5_flow,
    v9,
    v9_options_template,
)

from ndagent.wire.netflow.decoder import FlowDecoder

EXPORTER = "192.0.2.9"
BASIC = ((8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (1, 4), (2, 4))


def basic(source: int = 1, *, packets: int = 10, octets: int = 1000, protocol: int = 6) -> bytes:
    """A record of BASIC."""
    return struct.pack(">IIHHBII", 0x0A000000 + source, 0x0A000002, 50_000, 443, protocol, octets, packets)


def decoded(decoder: FlowDecoder, *datagrams: bytes, now: float = NOON + 0.5) -> list[dict[str, Any]]:
    """The events of these datagrams from EXPORTER."""
    lines = [line for data in datagrams for line in lines_of(decoder, EXPORTER, data, now=now)]
    assert all(line.endswith(b"}\n") and line.count(b'"event":{"') == 1 for line in lines)
    return [orjson.loads(line) for line in lines]


def one(*datagrams: bytes) -> dict[str, Any]:
    """The only event of these."""
    (event,) = decoded(FlowDecoder(), *datagrams)
    return event


# ---- NetFlow v5


def test_a_flow_of_version_5_is_this_event() -> None:
    """Written out by hand from Cisco's tables, every byte of it."""
    datagram = bytes.fromhex(
        "0005 0001 0000ea60 65f43840 0ee6b280 00000064 01 02 0000"  # 1 flow, uptime 60 s, noon + 250 ms, no sampling
        "0a010203 c0000250 0a0101fe 0003 0004 0000000c 00001770 0000c350 0000e678"  # 12 packets, 6000 B, 50 s to 59 s
        "c351 01bb 00 1b 06 10 fde9 0f00 18 10 0000"
    )
    assert decoded(FlowDecoder(), datagram) == [
        {
            "@timestamp": "2024-03-15T12:00:00.250Z",
            "ecs": {"version": "8.17.0"},
            "event": {
                "kind": "event", "category": ["network"], "type": ["connection"], "action": "netflow_flow",
                "created": "2024-03-15T12:00:00.500Z", "start": "2024-03-15T11:59:50.250Z",
                "end": "2024-03-15T11:59:59.250Z", "duration": 9_000_000_000,
            },
            "source": {"ip": "10.1.2.3", "port": 50001, "bytes": 6000, "packets": 12, "as": {"number": 65001}},
            "destination": {"ip": "192.0.2.80", "port": 443, "as": {"number": 3840}},
            "network": {
                "type": "ipv4", "transport": "tcp", "iana_number": "6", "bytes": 6000, "packets": 12,
                "community_id": "1:LeS1jcBZjg6DjRXoBNiQVBQ7oG8=",
            },
            "observer": {
                "ip": EXPORTER, "ingress": {"interface": {"id": "3"}}, "egress": {"interface": {"id": "4"}},
            },
            "netflow": {
                "version": 5, "engineType": 1, "engineId": 2, "ipNextHopIPv4Address": "10.1.1.254",
                "tcpControlBits": 27, "ipClassOfService": 16, "sourceIPv4PrefixLength": 24,
                "destinationIPv4PrefixLength": 16,
            },
        }
    ]  # fmt: skip


def test_version_5_tells_its_sampling_in_the_header() -> None:
    """Two bits of mode above, 100 below: the estimate is ECS's, the count stays beside it."""
    event = one(v5(v5_flow(bytes=1000, packets=10), sampling=0x4064))
    assert (event["network"]["bytes"], event["source"]["packets"]) == (100_000, 1000)
    assert event["netflow"]["octetDeltaCount"] == 1000
    assert event["netflow"]["packetDeltaCount"] == 10
    assert event["netflow"]["samplingRate"] == 100


def test_uptime_that_wrapped_is_a_moment_ago() -> None:
    """49.7 days after the start: the flow began before the wrap, the header is written after it."""
    event = one(v5(v5_flow(first=2**32 - 3000, last=500), uptime=1000))
    assert event["event"]["start"] == "2024-03-15T11:59:56.000Z"
    assert event["event"]["end"] == "2024-03-15T11:59:59.500Z"


def test_a_clock_that_was_never_set_gives_the_receive_time() -> None:
    """@timestamp at least; the flow's own times are what the device says."""
    assert one(v5(v5_flow(), seconds=0))["@timestamp"] == "2024-03-15T12:00:00.500Z"


# ---- NetFlow v9


RFC3954_TEMPLATE = "0000 001c 0100 0005 0008 0004 000c 0004 000f 0004 0002 0004 0001 0004"
RFC3954_DATA = (
    "0100 0040 c6a8010c 0a050cfe c0a80101 00001391 00518c81"
    "c0a8011b 0a050c17 c0a80101 000002ec 0005ef46 c0a80138 0a050c41 c0a80101 00000005 00001986"
)
V9_HEAD = "0009 0004 0000ea60 65f43840 00000001 00000007"


def test_the_example_of_rfc_3954() -> None:
    """Appendix A: a template of five fields, and three flows."""
    events = decoded(FlowDecoder(), bytes.fromhex(V9_HEAD + RFC3954_TEMPLATE + RFC3954_DATA))
    assert [event["source"] for event in events] == [
        {"ip": "198.168.1.12", "bytes": 5344385, "packets": 5009},
        {"ip": "192.168.1.27", "bytes": 388934, "packets": 748},
        {"ip": "192.168.1.56", "bytes": 6534, "packets": 5},
    ]
    assert [event["destination"]["ip"] for event in events] == ["10.5.12.254", "10.5.12.23", "10.5.12.65"]
    assert events[0]["netflow"] == {"version": 9, "observationDomainId": 7, "ipNextHopIPv4Address": "192.168.1.1"}
    assert events[0]["@timestamp"] == "2024-03-15T12:00:00.000Z"


def test_the_options_of_rfc_3954() -> None:
    """Appendix A.4 and A.5: what two line cards exported, with padding behind the template."""
    options = "0001 0018 0101 0004 0008 0003 0002 0029 0002 002a 0002 0000"
    data = "0101 0010 0001 0159 27d9 0002 02b2 4fb2"
    events = decoded(FlowDecoder(), bytes.fromhex(V9_HEAD + options + data))
    said = {"version": 9, "observationDomainId": 7}
    assert [event["netflow"] for event in events] == [
        said | {"scopeLineCard": 1, "exportedMessageTotalCount": 345, "exportedFlowRecordTotalCount": 10201},
        said | {"scopeLineCard": 2, "exportedMessageTotalCount": 690, "exportedFlowRecordTotalCount": 20402},
    ]
    assert events[0]["event"]["action"] == "netflow_options"
    assert events[0]["observer"] == {"ip": EXPORTER}


@pytest.mark.parametrize("version", [9, 10])
def test_a_field_of_no_length_costs_nothing_but_itself(version: int) -> None:
    """Juniper's SRX tell their sampling with the scope System of length 0, and flow templates behind that."""
    scopes, fields = [(1, 0)], [(35, 1), (34, 4)]
    shape, said = template(261, [(8, 4), (1, 4), (12, 0)]), struct.pack(">BI", 2, 100)
    flow = pack_set(261, struct.pack(">II", 0x0A000001, 10))
    if version == 9:
        options = pack_set(1, v9_options_template(256, scopes, fields), padding=2)
        data = v9(options, pack_set(256, said, padding=3), pack_set(0, shape), flow)
    else:
        options = pack_set(3, options_template(256, [(149, 0)], fields))
        data = ipfix(options, pack_set(256, said, padding=3), pack_set(2, shape), flow)
    decoder = FlowDecoder()
    told, event = decoded(decoder, data)
    assert told["netflow"]["samplingInterval"] == 100
    assert event["source"] == {"ip": "10.0.0.1", "bytes": 1000}
    assert decoder.take_counts().malformed == 0


def test_a_template_that_is_wrong_costs_no_other_set() -> None:
    """Where the next begins is known all the same."""
    wrong = pack_set(1, struct.pack(">HHHHH", 300, 4, 3, 1, 4))
    decoder = FlowDecoder()
    (event,) = decoded(decoder, v9(wrong, pack_set(0, template(256, BASIC)), pack_set(256, basic())))
    assert event["source"]["ip"] == "10.0.0.1"
    assert decoder.take_counts().malformed == 1


def test_a_sampler_s_rate_goes_to_the_flows_that_name_it() -> None:
    """Cisco's: options say the rate of each samplerId; a flow whose sampler nobody told of is as it was counted."""
    samplers = pack_set(1, v9_options_template(300, [(1, 4)], [(48, 1), (49, 1), (50, 4)]), padding=2)
    rates = pack_set(300, struct.pack(">IBBIIBBI", 1, 5, 2, 200, 1, 6, 2, 1))
    shape = pack_set(0, template(256, [*BASIC, (48, 1)]))
    flows = pack_set(256, b"".join(basic() + bytes((sampler,)) for sampler in (5, 6, 9)))
    events = decoded(FlowDecoder(), v9(samplers, rates, shape), v9(flows, sequence=1))[2:]
    assert [event["network"]["bytes"] for event in events] == [200_000, 1000, 1000]
    assert [event["netflow"]["samplingRate"] for event in events] == [200, 1, 1]


@pytest.mark.parametrize(
    ("fields", "values", "rate"),
    [
        ([(34, 4)], struct.pack(">I", 512), 512),
        ([(305, 4), (306, 4)], struct.pack(">II", 2, 98), 50),
        ([(309, 4), (310, 4)], struct.pack(">II", 1, 1000), 1000),
        ([(311, 8)], struct.pack(">d", 0.01), 100),
        ([(311, 8)], struct.pack(">d", math.nan), 1),
        ([(305, 4), (306, 4)], struct.pack(">II", 0, 98), 1),
        ([(34, 4)], struct.pack(">I", 0), 1),
    ],
)
def test_every_way_to_say_a_rate(fields: list[tuple[int, int]], values: bytes, rate: int) -> None:
    """RFC 5477's pairs and a probability, and Cisco's interval; nonsense is no sampling."""
    options = pack_set(3, options_template(300, [(149, 4)], fields))
    said = pack_set(300, struct.pack(">I", 7) + values)
    flow = ipfix(pack_set(2, template(256, BASIC)), pack_set(256, basic()), sequence=1)
    events = decoded(FlowDecoder(), ipfix(options, said), flow)
    assert events[1]["network"]["bytes"] == 1000 * rate


# ---- IPFIX


def test_the_example_of_rfc_7011() -> None:
    """Appendix A: template, flows, and an options template about the line cards."""
    head = "000a 0070 65f43840 00000000 00000007"
    shape = "0002 001c 0100 0005 0008 0004 000c 0004 000f 0004 0002 0004 0001 0004"
    data = (
        "0100 0044 c000020c c00002fe c0000201 00001391 00518c81"  # padded to 8 bytes: 4 of 3 * 20 + 4
        "c000021b c0000217 c0000202 000002ec 0005ef46 c0000238 c0000241 c0000203 00000005 00001986 00000000"
    )
    message = bytes.fromhex(head + shape + data)
    assert len(message) == 0x70
    events = decoded(FlowDecoder(), message)
    assert [(event["source"]["ip"], event["source"]["packets"]) for event in events] == [
        ("192.0.2.12", 5009), ("192.0.2.27", 748), ("192.0.2.56", 5),
    ]  # fmt: skip
    assert events[2]["netflow"]["ipNextHopIPv4Address"] == "192.0.2.3"


def test_fields_without_fixed_length_short_and_long() -> None:
    """RFC 7011 §7: one octet of length, or 255 and two more; and fields between and behind them."""
    shape = pack_set(2, template(256, [(8, 4), (82, 0xFFFF), (11, 2), (371, 0xFFFF), (12, 4)]))
    record = (
        bytes.fromhex("0a000001 04") + b"eth0" + bytes.fromhex("01bb ff 0102") + b"x" * 258 + bytes.fromhex("0a000002")
    )
    other = bytes.fromhex("0a000003 00 0050 02") + 'ü"'.encode()[:2] + bytes.fromhex("0a000004")
    events = decoded(FlowDecoder(), ipfix(shape, pack_set(256, record + other, padding=3)))
    assert [event["destination"] for event in events] == [
        {"ip": "10.0.0.2", "port": 443}, {"ip": "10.0.0.4", "port": 80},
    ]  # fmt: skip
    assert [event["netflow"]["interfaceName"] for event in events] == ["eth0", ""]
    assert [event["netflow"]["userName"] for event in events] == ["x" * 258, "ü"]


def test_elements_of_an_enterprise_are_hexadecimal_by_number() -> None:
    """And those of IANA that this program does not know."""
    shape = pack_set(2, template(256, [(8, 4), (9, 12235, 2), (32000, 3)]))
    event = one(ipfix(shape, pack_set(256, bytes.fromhex("0a000001 beef 010203"))))
    assert event["netflow"]["e9_12235"] == "beef"
    assert event["netflow"]["e0_32000"] == "010203"


def test_the_domain_that_options_name_stands_beside_the_header_s() -> None:
    """Element 149 is a usual scope; the same key twice is what Elasticsearch refuses."""
    options = pack_set(3, options_template(300, [(149, 4)], [(41, 8)]))
    data = ipfix(options, pack_set(300, struct.pack(">IQ", 9, 5)))
    (line,) = lines_of(FlowDecoder(), EXPORTER, data, now=NOON)
    assert line.count(b'"observationDomainId":') == 1
    found = orjson.loads(line)["netflow"]
    assert (found["observationDomainId"], found["observationDomainId_2"]) == (7, 9)


def test_a_biflow_has_both_directions() -> None:
    """RFC 5103: the way back under enterprise 29305."""
    shape = pack_set(2, template(256, [*BASIC, (29305, 1, 8), (29305, 2, 8), (29305, 6, 1)]))
    event = one(ipfix(shape, pack_set(256, basic() + struct.pack(">QQB", 700, 3, 2))))
    assert (event["source"]["bytes"], event["destination"]["bytes"]) == (1000, 700)
    assert (event["network"]["bytes"], event["network"]["packets"]) == (1700, 13)
    assert event["netflow"]["reverseTcpControlBits"] == 2


def test_values_of_every_kind() -> None:
    """RFC 7011 §6.1, with reduced sizes (§6.2) and repeated elements."""
    fields = [
        (27, 16), (28, 16), (56, 6), (80, 6), (1, 3), (2, 5), (276, 1), (320, 4), (150, 4), (157, 8), (258, 8),
        (95, 4), (60, 1), (61, 1), (10, 4), (58, 2), (14, 4), (59, 2), (104, 2), (104, 2), (210, 3), (90, 8), (8, 3),
    ]  # fmt: skip
    record = bytes.fromhex(
        "20010db8000000000000000000000001 20010db8000000000000000000000002 00005e005301 000000000000 010000 0000000102"
        "01 3f000000 65f43840 e99eb6c0 40000000 0000018e41fbbafa 0d0001bb 06 01 00000003 0064 00000004 0000"
        "cafe f00d 000000 0000fde900000001 010203"
    )
    event = one(ipfix(pack_set(2, template(256, fields)), pack_set(256, record)))
    assert event["source"] == {"ip": "2001:db8::1", "bytes": 65536, "packets": 258, "mac": "00-00-5E-00-53-01"}
    assert event["destination"] == {"ip": "2001:db8::2"}
    assert event["network"] == {"type": "ipv6", "bytes": 65536, "packets": 258, "direction": "outbound"}
    assert event["observer"] == {
        "ip": EXPORTER, "ingress": {"interface": {"id": "3"}, "vlan": {"id": "100"}},
        "egress": {"interface": {"id": "4"}},
    }  # fmt: skip
    assert event["event"]["start"] == "2024-03-15T12:00:00.000Z"
    assert event["event"]["end"] == "2024-03-15T12:00:00.250Z"
    assert event["netflow"] == {
        "version": 10, "observationDomainId": 7, "dataRecordsReliability": True, "absoluteError": 0.5,
        "collectionTimeMilliseconds": "2024-03-15T12:00:00.250Z", "applicationId": "0d0001bb",
        "layer2packetSectionData": "cafe", "layer2packetSectionData_2": "f00d",
        "mplsVpnRouteDistinguisher": "0000fde900000001", "sourceIPv4Address": "010203",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "values", "expected"),
    [
        ([(152, 8), (153, 8)], struct.pack(">QQ", 1710504000123, 1710504001123), (True, True, 1_000_000_000)),
        ([(152, 8), (161, 4)], struct.pack(">QI", 1710504000123, 1000), (True, True, 1_000_000_000)),
        ([(153, 8), (161, 4)], struct.pack(">QI", 1710504000123, 1000), (True, True, 1_000_000_000)),
        ([(158, 4), (159, 4)], struct.pack(">II", 1_000_000, 1), (True, True, 999_999_000)),
        ([(152, 8), (153, 8)], struct.pack(">QQ", 1710504001123, 1710504000123), (True, True, None)),
        ([(152, 8), (153, 8)], struct.pack(">QQ", 2**64 - 1, 1710504000123), (False, True, None)),
        ([(161, 4)], struct.pack(">I", 7), (False, False, 7_000_000)),
        ([(150, 4)], struct.pack(">I", NOON), (True, False, None)),
        ([(151, 4)], struct.pack(">I", NOON), (False, True, None)),
        ([(22, 4), (21, 4)], struct.pack(">II", 1000, 3000), (False, False, None)),
        ([(160, 8), (22, 4), (21, 4)], struct.pack(">QII", 1710504000000, 1000, 3000), (True, True, 2_000_000_000)),
    ],
)
def test_times_of_a_flow(fields: list[tuple[int, int]], values: bytes, expected: tuple[bool, bool, int | None]) -> None:
    """What is there is told; a duration needs both ends, in their order."""
    event = one(ipfix(pack_set(2, template(256, [(8, 4), *fields])), pack_set(256, b"\x0a\0\0\1" + values)))["event"]
    assert ("start" in event, "end" in event, event.get("duration")) == expected


def test_ipfix_uptimes_count_from_what_options_say() -> None:
    """systemInitTimeMilliseconds, told once; until then the figures stand as they are."""
    shape = pack_set(2, template(256, [(8, 4), (22, 4), (21, 4)]))
    flow = pack_set(256, struct.pack(">III", 0x0A000001, 1000, 3000))
    options = pack_set(3, options_template(300, [(149, 4)], [(160, 8)]))
    said = pack_set(300, struct.pack(">IQ", 7, NOON * 1000))
    before, _, after = decoded(FlowDecoder(), ipfix(shape, flow), ipfix(options, said, flow, sequence=1))
    assert "start" not in before["event"]
    assert before["netflow"]["flowStartSysUpTime"] == 1000
    assert after["event"]["start"] == "2024-03-15T12:00:01.000Z"


def test_one_template_for_both_kinds_of_address() -> None:
    """The kind that is not zero, and the version that the record says."""
    shape = pack_set(2, template(256, [(60, 1), (8, 4), (27, 16), (12, 4), (28, 16)]))
    four = bytes.fromhex("04 0a000001") + bytes(16) + bytes.fromhex("0a000002") + bytes(16)
    six = b"\x06" + bytes(4) + bytes(15) + b"\1" + bytes(4) + bytes(15) + b"\2"
    events = decoded(FlowDecoder(), ipfix(shape, pack_set(256, four + six)))
    assert [event["source"]["ip"] for event in events] == ["10.0.0.1", "::1"]
    assert [event["network"]["type"] for event in events] == ["ipv4", "ipv6"]


def test_icmp_has_the_community_id_of_its_type_and_code() -> None:
    """Of the specification's vectors: an echo request, from v5's destination port and from icmpTypeCodeIPv4."""
    source, destination = 0xC0A80059, 0xC0A80001  # 192.168.0.89 → 192.168.0.1
    five = one(v5(v5_flow(source, destination, protocol=1, sport=0, dport=0x0800)))
    shape = pack_set(0, template(256, [*BASIC, (32, 2)]))
    record = struct.pack(">IIHHBIIH", source, destination, 0, 0, 1, 1, 1, 0x0800)
    nine = one(v9(shape, pack_set(256, record)))
    assert five["network"]["community_id"] == "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="
    assert nine["network"]["community_id"] == five["network"]["community_id"]


def test_community_ids_may_be_left_out() -> None:
    """They cost a SHA-1 a flow."""
    (event,) = decoded(FlowDecoder(community_ids=False), v5(v5_flow()))
    assert "community_id" not in event["network"]
