"""What agents send, an envelope or plain NDJSON, to sections and batches of format `ecs`; for every input of agents.

    envelope = unpack(data, limits)
    check_header(envelope.header, agent_id=origin.agent_id, channel=channel)
    origin = named(origin, envelope.header, received_at_ns)
    batch = to_batch(envelope, origin, received_at_ns=received_at_ns)

Promises:
  * an envelope is taken only for the agent that the certificate names, on the channel its stream belongs to;
  * line counts are what they say before anything is appended; the body is decompressed once, against its limit;
  * the events keep the ids of `origin.spool_id`: use `named` only for a spool that the fleet knows to be the agent's;
  * an envelope that comes a second time is found by its key (`Repeats`), in bounded memory, and only if its bytes are
    the same: a host that was set back to a snapshot uses old names for new events, and those must not be lost.
Refuses: I/O, waiting; `open_envelope` may run in any thread.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import NamedTuple, cast

from ndagent.core.spool.segment import crc32
from ndagent.wire.envelope import BadEnvelope, Envelope, Header, Limits, TooLarge
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section
from ndagent.wire.routes import STREAMS, Channel, channel_of

FORMAT = "ecs"
REPEATS_KEPT = 16_384
"""Envelopes whose keys are remembered, some 4 MB: a sender repeats what was in flight when its connection broke."""

Data = bytes | bytearray


class WrongSender(BadEnvelope):
    """An envelope that says it is another agent's than the certificate's, or stands on a channel not its own."""


class Parcel(NamedTuple):
    """One envelope's or publish's events: a section of a batch, and its bytes in one or two pieces."""

    stream: str
    section: Section
    payload: tuple[bytes, ...]


def check_header(header: Header, *, agent_id: str, channel: Channel | None = None) -> None:
    """Raise WrongSender if the header does not fit the certificate, or the topic where there is one."""
    if header.agent_id != agent_id:
        raise WrongSender(f"the envelope is agent {header.agent_id}'s, the certificate is {agent_id}'s")
    belongs = channel_of(header.stream)
    if header.stream not in STREAMS[belongs] or channel not in (None, belongs):
        raise WrongSender(f"no stream {header.stream!r} on this channel")


def named(origin: Origin, header: Header, received_at_ns: int, *, vouched: bool = True) -> Origin:
    """The origin with the spool that may name its events, and by how many seconds its clock is ahead of ours.

    `vouched`: the fleet knows that spool to be this agent's; otherwise nobody's ids are kept. The result is `origin`
    itself if that says all this already: keep it for the next envelope of a connection.
    """
    spool_id = header.spool_id if vouched else ""
    skew_seconds = round((header.sent_at_ns - received_at_ns) / 1e9)
    if (origin.spool_id, origin.clock_skew_seconds) == (spool_id, skew_seconds):
        return origin
    return replace(origin, spool_id=spool_id, clock_skew_seconds=skew_seconds)


def open_envelope(envelope: Envelope, origin: Origin) -> Parcel:
    """Its events; raises BadEnvelope where they are not what its header declares."""
    ndjson = envelope.ndjson()
    header = envelope.header
    section = Section(origin, Framing.LF, Flags.NONE, len(ndjson), header.count)
    return Parcel(header.stream, section, (ndjson,))


def open_ndjson(data: Data, origin: Origin, *, stream: str, limits: Limits) -> Parcel:
    """Plain lines, of whoever has a certificate and no envelope; empty lines are none. Raises BadEnvelope, TooLarge."""
    rows: list[Data] = [*data.split(b"\n", limits.events + 1)]  # one pass that counts lines and finds empty ones
    ended = not rows[-1]
    if ended:
        rows.pop()
    if len(rows) > limits.events or len(data) >= limits.length_bytes + ended:
        raise TooLarge(
            f"more than {limits.events} events or {limits.length_bytes} bytes"
            f" ({len(rows)} lines or more in {len(data)} bytes)"
        )
    if b"" in rows or b"\r" in rows:
        rows = [row for row in rows if row not in (b"", b"\r")]
        data, ended = b"\n".join(rows), False
    if not rows:
        raise BadEnvelope("no events")
    pieces = (data,) if ended else (data, b"\n")
    length, count = len(data) + (not ended), len(rows)
    section = Section(origin, Framing.LF, Flags.NONE, length, count)
    return Parcel(stream, section, cast("tuple[bytes, ...]", pieces))


def to_batch(envelope: Envelope, origin: Origin, *, received_at_ns: int) -> Batch:
    """A batch of this one envelope; raises BadEnvelope."""
    return batch_of(open_envelope(envelope, origin), received_at_ns=received_at_ns)


def batch_of(parcel: Parcel, *, received_at_ns: int) -> Batch:
    """A batch of this one parcel."""
    return Batch(parcel.stream, FORMAT, received_at_ns, [parcel.section], parcel.payload)


class Name(NamedTuple):
    """By what a batch that comes again is known: whose it is, its key, and its body's hash (an envelope's CRC-32)."""

    agent_id: str  # compared with the certificate (see check_header), so nobody can claim another's
    key: str
    body_hash: int


def name_of(envelope: Envelope) -> Name:
    """The envelope's name; some microseconds."""
    return Name(envelope.header.agent_id, envelope.header.key, crc32(envelope.body))


class Repeats:
    """Which envelopes are durable already; the ones longest ago are forgotten."""

    def __init__(self, most: int = REPEATS_KEPT) -> None:
        self._most = most
        self._known: OrderedDict[Name, None] = OrderedDict()

    def __contains__(self, name: Name) -> bool:
        return name in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, name: Name) -> None:
        """It is durable."""
        self._known[name] = None
        self._known.move_to_end(name)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
