"""What a batch carries besides its lines: origins, keys, ids; and the bodies that are refused."""

import json
import struct

import pytest
from decode_twins import (
    NOON_NS,
    Decode,
    body_of,
    body_of_sections,
    messages_body,
    octet_counted,
    one_section,
    section,
)

from ndagent.wire.ecs import DecodeSettings, base36, murmur2, partition_key
from ndagent.wire.record import Batch, CorruptBody, Flags, Framing, Origin, Section, pack_body

SETTINGS = DecodeSettings("collector-1")
GATEWAY = Origin("syslog_tls", "2001:db8::9", 40000, "CN=gw,O=Example", "0AFF", ("DNS:gw", "URI:nd:device:gw"))


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(key: bytes, signed: int) -> None:
    """The values of Kafka's own UtilsTest: the same host must meet the same partition from a Java producer."""
    (value,) = struct.unpack("<i", struct.pack("<I", murmur2(key)))
    assert value == signed
    assert partition_key(key) == signed & 0x7FFFFFFF


@pytest.mark.parametrize("host", [b"21", b"foobar", b"a", b"ab", b"abc", b"abcd", b"h" * 255, b"\xc3\xbc\xff"])
def test_the_key_is_the_hosts(decode: Decode, host: bytes) -> None:
    """Events of one host keep their order in one partition."""
    batch = decode(SETTINGS, messages_body([b"<13>1 - " + host + b" a p m - x"]))
    assert list(batch.keys) == [partition_key(host)]


def test_without_a_host_the_key_is_the_peers(decode: Decode) -> None:
    """An event that names no host belongs to the address it came from."""
    batch = decode(SETTINGS, messages_body([b"<13>1 - - a p m - x", b"rubbish"]))
    assert list(batch.keys) == [partition_key(b"192.0.2.50")] * 2


def test_sections_keep_their_origins(decode: Decode) -> None:
    """Chunks of many connections share a record; each event must name its own peer and certificate."""
    plain = Origin("syslog_tls", "::ffff:192.0.2.1", 5)
    local = Origin("file", "", 0)
    batch = decode(
        SETTINGS,
        body_of_sections(
            [section(b"<13>x", framing=Framing.WHOLE, origin=origin) for origin in (GATEWAY, plain, GATEWAY, local)]
        ),
    )
    assert list(batch.origins) == [0, 1, 0, 2]
    assert list(batch.origin_blobs) == [GATEWAY.packed, plain.packed, local.packed]
    first, second, _, last = map(json.loads, batch.lines())
    assert first["source"] == {"ip": "2001:db8::9", "port": 40000}
    assert first["tls"] == {"client": {"subject": "CN=gw,O=Example", "x509": {"serial_number": "0AFF"}}}
    assert second["source"] == {"ip": "192.0.2.1", "port": 5}
    assert "tls" not in second
    assert "source" not in last
    assert last["observer"] == {"name": "collector-1", "type": "collector", "product": "ndcollector"}


def test_ids_count_up_from_the_records_sequence(decode: Decode) -> None:
    """event.id is what receivers de-duplicate by: spool id and sequence, nothing else."""
    batch = decode(SETTINGS, messages_body([b"<13>x"] * 3), spool_id='odd"id', sequence=36**4 - 1)
    ids = [json.loads(line)["event"]["id"] for line in batch.lines()]
    assert ids == ['odd"id-zzzz', 'odd"id-10000', 'odd"id-10001']
    assert batch.sequences == range(36**4 - 1, 36**4 + 2)
    assert [json.loads(line)["event"]["sequence"] for line in batch.lines()] == list(batch.sequences)


@pytest.mark.parametrize("number", [0, 35, 36, 1295, 1296, 2**62])
def test_base36_reads_back(number: int) -> None:
    """Python's int() is the inverse."""
    assert int(base36(number), 36) == number


def test_a_batch_carries_what_it_was_decoded_with(decode: Decode) -> None:
    """Outputs tell replays and ages by these fields."""
    batch = decode(SETTINGS, messages_body([b"<13>x"]), replay=True)
    carried = (batch.stream, batch.spool_id, batch.received_at_ns, batch.replay)
    assert carried == ("security_events", "k3v9", NOON_NS, True)


def test_no_sections_are_no_events(decode: Decode) -> None:
    """An empty record is odd, not corrupt."""
    batch = decode(SETTINGS, body_of_sections([]))
    assert len(batch) == 0
    assert batch.ndjson == b""


@pytest.mark.parametrize(
    ("frames", "framing", "texts"),
    [
        ([b"<13>a\r\n", b"<13>b\0\n", b"<13>c\r\r\n", b"<13>d"], Framing.LF, ["a", "b", "c\r", "d"]),
        ([octet_counted(t) for t in (b"<13>a\n", b"<13>b\r\n", b"<13>c\0", b"<13>d ")], Framing.OCTET_COUNTED,
         ["a", "b\r", "c", "d "]),
        ([b"\n", b"\r\n", b"<13>x\n"], Framing.LF, ["", "", "x"]),
        ([b"0 ", b"005 <13>x"], Framing.OCTET_COUNTED, ["", "x"]),
    ],
)  # fmt: skip
def test_one_trailing_byte_is_trimmed(decode: Decode, frames: list[bytes], framing: Framing, texts: list[str]) -> None:
    """rsyslog's template sends an LF inside the octet frame, others CR LF or NUL; a second one is the device's own."""
    batch = decode(SETTINGS, body_of(frames, framing=framing))
    assert [json.loads(line)["message"] for line in batch.lines()] == texts


@pytest.mark.parametrize(
    ("payload", "framing", "count"),
    [
        (b"<13>a\n<13>b\n", Framing.LF, 1),
        (b"<13>a\n<13>b\n", Framing.LF, 3),
        (b"", Framing.LF, 1),
        (b"<13>a\n", Framing.LF, 2**32 - 1),
        (b"5 <13>a5 <13>b", Framing.OCTET_COUNTED, 1),
        (b"5 <13>a5 <13>b", Framing.OCTET_COUNTED, 3),
        (b"6 <13>a", Framing.OCTET_COUNTED, 1),
        (b"x <13>a", Framing.OCTET_COUNTED, 1),
        (b"5<13>a", Framing.OCTET_COUNTED, 1),
        (b"99999999999 <13>a", Framing.OCTET_COUNTED, 1),
        (b"5", Framing.OCTET_COUNTED, 1),
        (b"<13>a", Framing.WHOLE, 0),
        (b"<13>a", Framing.WHOLE, 2),
    ],
)
def test_a_section_that_does_not_hold_what_it_counts_is_corrupt(
    decode: Decode, payload: bytes, framing: Framing, count: int
) -> None:
    """Sequences are given by the counts: one event more or less would shift every id behind it."""
    with pytest.raises(CorruptBody):
        decode(SETTINGS, one_section(payload, framing=framing, count=count))


def test_another_format_is_refused(decode: Decode) -> None:
    """A format of tomorrow is not syslog; reading it as such would mark every event a failure."""
    batch = Batch("s", "parquet", NOON_NS, [Section(GATEWAY, Framing.LF, Flags.NONE, 3, 1)], [b"{}\n"])
    with pytest.raises(CorruptBody, match="parquet"):
        decode(SETTINGS, b"".join(pack_body(batch)))


def test_a_damaged_body_is_corrupt_and_nothing_else(decode: Decode) -> None:
    """Every single changed byte gives events or CorruptBody: never another error, never a crash."""
    body = body_of([octet_counted(b"<13>1 - h a p m - x")] * 3, framing=Framing.OCTET_COUNTED)
    for at in range(len(body)):
        for bit in range(8):
            damaged = bytearray(body)
            damaged[at] ^= 1 << bit
            try:
                decode(SETTINGS, bytes(damaged))
            except CorruptBody:
                continue


def test_a_host_longer_than_the_arrays_can_say_is_whole_in_the_line(decode: Decode) -> None:
    """host_lengths has 16 bits; such a host is no host, but its bytes are kept."""
    long, longest = b"h" * 0xFFFF, b"h" * 0x10000
    batch = decode(SETTINGS, messages_body([b"<13>1 - " + host + b" a p m - x" for host in (long, longest)]))
    assert [json.loads(line)["host"]["hostname"].encode() for line in batch.lines()] == [long, longest]
    assert list(batch.host_lengths) == [0xFFFF, 0]
    assert batch.host_offsets[0] > 0
    assert batch.host_offsets[1] == 0


def test_zones_go_by_network_or_identity_first_match_wins(decode: Decode) -> None:
    """Devices in Tokyo send Tokyo's time; the collector cannot know that from the message."""
    settings = DecodeSettings(
        "c",
        timezone="Europe/Berlin",
        origins=(("nd:device:gw*", "America/New_York"), ("10.2.0.0/16", "Asia/Tokyo"), ("10.0.0.0/8", "Asia/Kolkata")),
    )
    origins = [
        GATEWAY,
        Origin("s", "10.2.3.4", 1),
        Origin("s", "::ffff:10.2.3.4", 1),
        Origin("s", "10.9.9.9", 1),
        Origin("s", "::1", 1),
    ]
    sections = [section(b"<13>Mar 15 12:00:00 h t: m", framing=Framing.WHOLE, origin=origin) for origin in origins]
    stamps = [json.loads(line)["@timestamp"][11:16] for line in decode(settings, body_of_sections(sections)).lines()]
    assert stamps == ["16:00", "03:00", "03:00", "06:30", "11:00"]


def test_a_time_zone_that_does_not_exist_is_refused_by_name() -> None:
    """A typo must stop the start, not put every event hours off."""
    with pytest.raises(ValueError, match="'Europe/Berln' does not exist"):
        DecodeSettings("c", timezone="Europe/Berln")
    with pytest.raises(ValueError, match="'Mars' does not exist"):
        DecodeSettings("c", origins=(("10.0.0.0/8", "Mars"),))
