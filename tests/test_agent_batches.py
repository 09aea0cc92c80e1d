"""Envelopes and plain lines to sections: whose they are, how many, what is refused, what is known already."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.envelope import BadEnvelope, Header, Limits, TooLarge, pack, unpack
from ndagent.wire.record import Flags, Framing, Origin, Section, pack_body, unpack_body
from ndagent.wire.routes import Channel
from ndcollector.inputs.agent_batches import (
    Repeats,
    WrongSender,
    batch_of,
    check_header,
    name_of,
    named,
    open_ndjson,
    to_batch,
)

ORIGIN = Origin("mqtt", "192.0.2.1", 4711, "CN=a", "1F", ("URI:nd:agent:a",))
LIMITS = Limits(length_bytes=1000, events=10)


def header(**fields: Any) -> Header:
    given_ = {
        "stream": "security_events", "spool_id": "s" * 16, "first": 0, "last": 1, "count": 2, "length": 6,
        "sent_at_ns": 10**18, "agent_id": "a", "run_id": "ab" * 8,
    }  # fmt: skip
    return Header(**given_ | fields)


class TestHeader:
    """Who says so, and when."""

    @pytest.mark.parametrize(("stream", "channel"), [("security_events", Channel.EVENTS), ("alerts", Channel.EVENTS),
                                                     ("metrics", Channel.METRICS)])  # fmt: skip
    def test_each_stream_has_its_channel(self, stream: str, channel: Channel) -> None:
        """On its own it is taken, where there is no channel too, on the others not."""
        check_header(header(stream=stream), agent_id="a", channel=channel)
        check_header(header(stream=stream), agent_id="a")
        for other in set(Channel) - {channel}:
            with pytest.raises(WrongSender, match="channel"):
                check_header(header(stream=stream), agent_id="a", channel=other)

    def test_another_agents_and_unknown_streams(self) -> None:
        """The certificate's word counts; internal streams cannot be fed from outside."""
        with pytest.raises(WrongSender, match="certificate is b's"):
            check_header(header(), agent_id="b")
        for stream in ("internal", "", "Security_Events"):
            with pytest.raises(WrongSender):
                check_header(header(stream=stream), agent_id="a")

    def test_named(self) -> None:
        """The spool's id if it is vouched for, the skew always; the same object while nothing changes."""
        now = 10**18 - 5 * 10**9
        first = named(ORIGIN, header(), now)
        assert (first.spool_id, first.clock_skew_seconds) == ("s" * 16, 5)
        assert named(first, header(), now + 10**8) is first
        assert named(first, header(), now, vouched=False).spool_id == ""
        assert named(first, header(spool_id="t" * 16), now).spool_id == "t" * 16
        assert first.packed != ORIGIN.packed

    def test_a_time_from_nowhere_is_a_number(self) -> None:
        """The largest that a header can hold still packs."""
        origin = named(ORIGIN, header(sent_at_ns=2**63 - 1), time.time_ns())
        assert Origin.unpack(origin.packed) == origin


def test_an_envelope_is_a_batch() -> None:
    """One section of its lines, which comes out of a record as it went in."""
    envelope = unpack(pack(header(), b"{}\n{}\n"), LIMITS)
    batch = to_batch(envelope, ORIGIN, received_at_ns=7)
    assert (batch.stream, batch.format, batch.received_at_ns, batch.count) == ("security_events", "ecs", 7, 2)
    body = unpack_body(b"".join(pack_body(batch)))
    assert body.sections() == [Section(ORIGIN, Framing.LF, Flags.NONE, 6, 2)]
    assert bytes(body.payload) == b"{}\n{}\n"


class TestNdjson:
    """Lines without an envelope."""

    @pytest.mark.parametrize(
        ("data", "lines"),
        [
            (b"{}", [b"{}"]), (b"{}\n", [b"{}"]), (b"{}\n{}", [b"{}", b"{}"]), (b" ", [b" "]),
            (b"\n\n{}\n\r\n \n{}\r\n\n", [b"{}", b" ", b"{}\r"]), (b"", []), (b"\n", []), (b"\r\n\r\n", []),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("kind", [bytes, bytearray])
    def test_lines(self, data: bytes, lines: list[bytes], kind: Any) -> None:
        """The last may lack its end; empty ones are none; no line at all is no event."""
        if not lines:
            with pytest.raises(BadEnvelope, match="no events"):
                open_ndjson(kind(data), ORIGIN, stream="metrics", limits=LIMITS)
            return
        parcel = open_ndjson(kind(data), ORIGIN, stream="metrics", limits=LIMITS)
        assert b"".join(parcel.payload) == b"".join(line + b"\n" for line in lines)
        assert (parcel.section.count, parcel.stream) == (len(lines), "metrics")

    @pytest.mark.parametrize("end", [b"", b"\n"])
    def test_limits(self, end: bytes) -> None:
        """As many events and bytes as allowed are taken, one more is not; the bytes count with the last line's end."""
        assert open_ndjson(b"\n".join([b"{}"] * 10) + end, ORIGIN, stream="s", limits=LIMITS).section.count == 10
        with pytest.raises(TooLarge):
            open_ndjson(b"\n".join([b"{}"] * 11) + end, ORIGIN, stream="s", limits=LIMITS)
        assert open_ndjson(b"x" * 999 + end, ORIGIN, stream="s", limits=LIMITS).section.length == 1000
        with pytest.raises(TooLarge):
            open_ndjson(b"x" * 1000 + end, ORIGIN, stream="s", limits=LIMITS)

    @given(st.binary(max_size=1200))
    def test_any_bytes(self, data: bytes) -> None:
        """Refused, or a batch whose counts and lengths are right."""
        try:
            parcel = open_ndjson(data, ORIGIN, stream="s", limits=LIMITS)
        except BadEnvelope:
            return
        payload = b"".join(parcel.payload)
        assert payload.endswith(b"\n")
        assert payload.count(b"\n") == parcel.section.count <= LIMITS.events
        assert len(payload) == parcel.section.length <= LIMITS.length_bytes
        assert b"\n\n" not in payload
        assert [line for line in data.split(b"\n") if line not in (b"", b"\r")] == payload.split(b"\n")[:-1]
        pack_body(batch_of(parcel, received_at_ns=0))


class TestRepeats:
    """What came before."""

    def test_a_repeat_is_the_same_agent_key_and_bytes(self) -> None:
        """Sent later, with another header, it is still the same; other events of the same name are not."""
        repeats = Repeats()
        repeats.add(name_of(unpack(pack(header(), b"{}\n{}\n"), LIMITS)))
        assert name_of(unpack(pack(header(sent_at_ns=5), b"{}\n{}\n"), LIMITS)) in repeats
        for other, lines in (
            (header(agent_id="b"), b"{}\n{}\n"),
            (header(last=2), b"{}\n{}\n"),
            (header(), b"[]\n{}\n"),
        ):
            assert name_of(unpack(pack(other, lines), LIMITS)) not in repeats

    def test_the_longest_ago_are_forgotten(self) -> None:
        """Bounded: `most` are kept, one that came again counts as new."""
        repeats = Repeats(most=3)
        names = [name_of(unpack(pack(header(first=n, last=n + 1), b"{}\n{}\n"), LIMITS)) for n in range(4)]
        for name in (names[0], names[1], names[2], names[0], names[3]):
            repeats.add(name)
        assert len(repeats) == 3
        assert [name in repeats for name in names] == [True, False, True, True]
