"""The pure half of the journald input: export format, cursors, choice of entries, and what one run makes of them."""

import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from host_input_process import HOST, Positions
from hypothesis import given
from hypothesis import strategies as st

from ndagent.core.metrics import Metrics
from ndagent.inputs import InputContext
from ndagent.inputs.journald import Config, Journald, build
from ndagent.inputs.journald_choice import Choice
from ndagent.inputs.journald_cursor import Cursor
from ndagent.inputs.journald_export import MAX_FIELDS, BadExport, Entry, ExportParser
from ndagent.wire.record import Batch


def cursor(number: int, *, sequence_id: str = "5" * 32) -> str:
    return f"s={sequence_id};i={number:x};b={'b' * 32};m={number:x};t={number:x};x=1"


def export(fields: Mapping[str, bytes], number: int = 1) -> bytes:
    """An entry as journalctl writes it: binary where there are controls or no UTF-8."""
    found = [b"__CURSOR=%b\n__REALTIME_TIMESTAMP=%d\n" % (cursor(number).encode(), 1_700_000_000_000_000 + number)]
    for name, value in fields.items():
        is_text = all(byte >= 32 or byte == 9 for byte in value) and value.decode("utf-8", "ignore").encode() == value
        found.append(
            b"%b=%b\n" % (name.encode(), value)
            if is_text
            else b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(value)), value)
        )
    return b"".join(found) + b"\n"


def parse(data: bytes, *, piece: int = 10**9, limit: int = 1000) -> list[Entry]:
    parser = ExportParser(max_value_bytes=limit)
    return [entry for at in range(0, len(data), piece) for entry in parser.feed(data[at : at + piece])]


_VALUES = st.one_of(st.binary(max_size=40), st.sampled_from([b"\n\n", b"\nA=b\n\n", b"x" * 40, b"=", b""]))


@given(
    st.lists(st.dictionaries(st.sampled_from(["MESSAGE", "A", "_B", "C_9"]), _VALUES, max_size=4), max_size=4),
    st.integers(1, 30),
    st.integers(1, 50),
)
def test_pieces_make_no_difference(entries: list[dict[str, bytes]], piece: int, limit: int) -> None:
    """Whole or in pieces, text or binary, cut or not: the same entries, each value up to the limit."""
    data = b"".join(export(fields) for fields in entries)
    limit += 120  # the cursor is a value too
    found = parse(data, piece=piece, limit=limit)
    assert found == parse(data, limit=limit)
    assert [
        {name.decode(): value for name, value in entry.fields.items() if not name.startswith(b"__")} for entry in found
    ] == entries


@given(st.integers(1, 60), st.binary(min_size=1, max_size=200), st.integers(1, 20))
def test_values_are_cut_at_the_limit(limit: int, value: bytes, piece: int) -> None:
    """One byte over is cut and marked; what follows is whole."""
    name = b"M"
    text = value.hex().encode()
    binary = b"%b\n%b%b\n" % (name, struct.pack("<Q", len(value)), value)
    for data, whole in ((b"M=%b\n" % text, text), (binary, value)):
        found = parse(data + b"\nN=1\n\n", piece=piece, limit=limit)
        assert [entry.fields for entry in found] == [{b"M": whole[:limit]}, {b"N": b"1"}]
        assert [entry.is_cut for entry in found] == [len(whole) > limit, False]


@given(st.binary(max_size=300), st.integers(1, 40))
def test_garbage_is_entries_or_our_error(data: bytes, piece: int) -> None:
    """Nothing else, and nothing held beyond the limit."""
    parser = ExportParser(max_value_bytes=16)
    try:
        for at in range(0, len(data), piece):
            parser.feed(data[at : at + piece])
            assert len(parser._buffer) <= 16 + 255 + piece + 20
    except BadExport:
        pass


def test_an_entry_has_a_limit_of_fields() -> None:
    """At the limit it is whole; one more is left out and the entry is marked."""
    fields = [b"F%d=%d\n" % (number, number) for number in range(MAX_FIELDS + 1)]
    binary = b"B\n" + struct.pack("<Q", 1) + b"\n\n"  # not on the quick way
    (whole,) = parse(binary + b"".join(fields[: MAX_FIELDS - 1]) + b"\n")
    (cut,) = parse(binary + b"".join(fields[:MAX_FIELDS]) + b"\n")
    assert (len(whole.fields), whole.is_cut) == (MAX_FIELDS, False)
    assert (len(cut.fields), cut.is_cut) == (MAX_FIELDS, True)


def test_long_values_in_small_pieces_take_linear_time() -> None:
    """A megabyte in a thousand pieces costs as much as in ten."""

    def seconds(piece: int) -> float:
        begun = time.process_time()
        parse(b"M=" + b"x" * 1_000_000 + b"\n\n", piece=piece, limit=10**7)
        return time.process_time() - begun

    assert seconds(1_000) < 20 * seconds(100_000) + 0.2


def test_a_cursor_says_what_is_missing() -> None:
    """Within one sequence; another one cannot be compared."""
    first, later = Cursor.parse(cursor(3)), Cursor.parse(cursor(7))
    assert first.missing_before(later) == 3
    assert first.missing_before(Cursor.parse(cursor(4))) == 0
    assert later.missing_before(first) is None
    assert first.missing_before(Cursor.parse(cursor(7, sequence_id="6" * 32))) is None
    assert first.is_same_entry(Cursor.parse(cursor(3, sequence_id="6" * 32)))
    for text in ("", "s=1", "garbage", "s=1;i=zz;b=;m=;t=;x=", "s=1;b=2;m=3;t=4;x=5"):
        with pytest.raises(ValueError, match=r"cursor|invalid literal"):
            Cursor.parse(text)


def entry(**fields: str) -> Entry:
    return Entry({name.encode(): value.encode() for name, value in fields.items()}, {}, False)


def test_units_are_chosen_as_journalctl_does() -> None:
    """What a unit says, and what root says about it; not what anybody says about it."""
    choice = Choice(units=("ssh*.service",), identifiers=(), priority=None, exclude_units=())
    assert choice.takes(entry(_SYSTEMD_UNIT="sshd.service"))
    assert choice.takes(entry(_SYSTEMD_UNIT="init.scope", UNIT="sshd.service", _UID="0"))
    assert not choice.takes(entry(_SYSTEMD_UNIT="user.service", UNIT="sshd.service", _UID="1000"))
    assert not choice.takes(entry(_SYSTEMD_UNIT="notssh.service"))
    assert not choice.takes(entry(MESSAGE="kernel"))


def test_priority_and_identifier_must_both_fit() -> None:
    """An entry without a priority is not severe."""
    choice = Choice(units=(), identifiers=("a", "b"), priority=4, exclude_units=())
    assert choice.takes(entry(PRIORITY="4", SYSLOG_IDENTIFIER="b"))
    assert not choice.takes(entry(PRIORITY="5", SYSLOG_IDENTIFIER="b"))
    assert not choice.takes(entry(PRIORITY="0", SYSLOG_IDENTIFIER="c"))
    assert not choice.takes(entry(SYSLOG_IDENTIFIER="a"))


class Run:
    """An input that is given entries by hand."""

    def __init__(self, **settings: object) -> None:
        self.metrics, self.positions = Metrics(), Positions()
        context = InputContext(Path(), self.metrics, time.time, self.positions, HOST)
        self.input: Journald = build("journald", Config(**settings), context)
        self.batches: list[Batch] = []

    async def take(self, data: bytes) -> list[dict]:
        before = len(self.batches)
        await self.input._take(parse(data), len(data), self.accept)
        return [json.loads(line) for one in self.batches[before:] for line in b"".join(one.payload).splitlines()]

    async def accept(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.positions.take(batch.checkpoint)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"input": "journald", **labels}) or 0.0


async def test_the_agents_own_entries_make_no_events_but_are_passed() -> None:
    """Loop protection by default: no batch for them, and the next one's position is behind them."""
    run = Run()
    own = {"MESSAGE": b"sent 1 event", "_SYSTEMD_UNIT": b"ndagent.service"}
    assert await run.take(export(own, 1) + export(own, 2)) == []
    assert run.batches == []
    (event,) = await run.take(export({"MESSAGE": b"other"}, 3) + export(own, 4))
    assert event["message"] == "other"
    assert run.positions.last("journald") == cursor(4).encode()


async def test_what_journald_lost_is_counted_and_told() -> None:
    """Its rate limit, and the kernel's messages it missed: in its own words as an event, and as a number."""
    run = Run()
    events = await run.take(
        export({"MESSAGE": b"Suppressed 123 messages from web.service", "_TRANSPORT": b"driver",
                "MESSAGE_ID": b"a596d6fe7bfa4994828e72309e95d61e", "N_DROPPED": b"123"}, 1)
        + export({"MESSAGE": b"Missed 7 kernel messages", "_TRANSPORT": b"driver",
                  "MESSAGE_ID": b"e9bf28e6e834481bb6f48f548ad13606"}, 2)
        + export({"MESSAGE": b"Suppressed 9 messages", "_TRANSPORT": b"journal",
                  "MESSAGE_ID": b"a596d6fe7bfa4994828e72309e95d61e"}, 3)
    )  # fmt: skip
    assert len(events) == 3
    assert run.value("nd_input_dropped_events_total", reason="rate_limited_by_journald") == 123  # not the forged one
    assert run.value("nd_input_dropped_events_total", reason="missed_by_journald") == 7
    assert run.value("nd_input_received_events_total") == 3 + 130


async def test_the_senders_clock_goes_before_journalds() -> None:
    """_SOURCE_REALTIME_TIMESTAMP is when it was said."""
    run = Run()
    first, second = await run.take(
        export({"_SOURCE_REALTIME_TIMESTAMP": b"1600000000123456"}, 1) + export({"MESSAGE": b"x"}, 2)
    )
    assert first["@timestamp"] == "2020-09-13T12:26:40.123456Z"
    assert second["@timestamp"] == "2023-11-14T22:13:20.000002Z"


def test_a_start_is_a_place_or_a_duration() -> None:
    """And nothing else."""
    assert Config(start="2h").start == 7200
    assert Config(start="end").start == "end"
    with pytest.raises(ValueError, match="start"):
        Config(start="yesterday")
