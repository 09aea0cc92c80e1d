"""`POST /agents/v1/batches`: an agent's events, acknowledged (200) once they are on disk.

A body is an envelope (see ndagent/wire/envelope.py) or plain NDJSON, which may be compressed (Content-Encoding gzip,
deflate, zstd), belongs to the stream of `?stream=` (security_events without it), and gets its event ids here.

Promises:
  * 200 is said only after the spool has the events on disk. A batch that comes again under its key (the envelope's, or
    the Idempotency-Key header's) is answered 200 and not stored again, see https_repeats.py; without a key there is no
    such protection, and a client that repeats a request doubles its events;
  * whose events they are is what the certificate says; an envelope of another agent, or with a spool of another
    agent's, is refused (403) and audited;
  * while the spool takes nothing, agents are told to come back or go elsewhere (503), and not left hanging; what was
    taken by then is stored all the same once there is room, and remembered;
  * limits: one agent's requests at a time and all agents', an origin's events and bytes a second (429), bytes, bytes
    decompressed and events of one (413), bytes of all (503).
Refuses: looking into events. Lines that are no JSON become events that say so (the decoder's work). (Past 400 lines:
the one path of a request, whose refusals must be read in their order.)
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from aiohttp import web

from ndagent.core import messages
from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.origin_limits import OriginLimits
from ndagent.core.spool import SpoolClosed
from ndagent.wire import routes
from ndagent.wire.envelope import BadEnvelope, Limits, TooLarge, unpack
from ndagent.wire.record import Batch
from ndcollector.inputs.agent_batches import (
    Name,
    Parcel,
    WrongSender,
    batch_of,
    check_header,
    name_of,
    named,
    open_envelope,
    open_ndjson,
)
from ndcollector.inputs.agent_gate import Gate
from ndcollector.inputs.https_agents import admit
from ndcollector.inputs.https_body import BodyLimits, Budget, Lease, decode, read_body, too_large
from ndcollector.inputs.https_problem import STOPPING, STOPPING_SECONDS, Problem, json_response
from ndcollector.inputs.https_repeats import Repeats
from ndcollector.inputs.https_server import Call, Route

STREAMS = frozenset().union(*routes.STREAMS.values())
NDJSON_TYPES = frozenset({routes.NDJSON_TYPE, "application/ndjson"})
MAX_KEY_CHARACTERS = 128
THREAD_BYTES = 256 * 1024
"""A larger body is decompressed in a thread: the loop has other peers."""
BUSY_SECONDS, FULL_SECONDS = 1, 5
"""Retry-After of 429 and of 503."""
LOG_SECONDS = 60.0
_ALL = ""  # no agent's id


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """See HttpsLimits."""

    body: BodyLimits
    envelope: Limits
    requests: int
    requests_per_agent: int
    remembered: int
    accept_seconds: float


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A batch that was read and not opened yet."""

    name: Name | None
    stream: str
    length: int  # bytes that `open` may make of it
    open: Callable[[], Parcel]


class _Stay:
    """One request's place, until it is answered, and its memory, until then or until its batch is stored."""

    __slots__ = ("_agent_id", "_crowd", "_kept", "lease")

    def __init__(self, crowd: "Counter[str]", agent_id: str, lease: Lease) -> None:
        self._crowd = crowd
        self._agent_id = agent_id
        self._kept = False
        self.lease = lease
        crowd[agent_id] += 1
        crowd[_ALL] += 1

    def leave(self) -> None:
        """The request is answered; once."""
        self._crowd[_ALL] -= 1
        self._crowd[self._agent_id] -= 1
        if not self._crowd[self._agent_id]:
            del self._crowd[self._agent_id]
        if not self._kept:
            self.lease.release()

    def keep_until(self, storing: "asyncio.Task[int]") -> None:
        """The memory is this task's now."""
        self._kept = True
        storing.add_done_callback(lambda _: self.lease.release())


class Batches:
    """One listener's batches; `accept` is the spool's."""

    def __init__(
        self,
        accept: Accept,
        *,
        name: str,
        limits: BatchLimits,
        budget: Budget,
        rates: OriginLimits | None = None,
        gate: Gate | None,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._accept = accept
        self._limits = limits
        self._rates = rates
        self._limited = metrics.limited_seconds.labels(name)
        self._gate = gate
        self._clock = clock
        self._budget = budget
        self._repeats = Repeats(limits.remembered)
        self._crowd: Counter[str] = Counter()  # requests of each agent, and of _ALL
        self._storing: set[asyncio.Task[int]] = set()
        self._late: dict[asyncio.Future[int], str] = {}
        self._late_of: Counter[str] = Counter()  # by stream: each has a spool of its own
        self._received = metrics.received.labels(name)
        self._received_bytes = metrics.received_bytes.labels(name)
        self._known_again = metrics.known.labels(name)
        self._paused = metrics.paused.labels(name)
        self._log = logging.getLogger(name)
        self._said = Throttle(LOG_SECONDS, clock=clock)

    def routes(self) -> list[Route]:
        """What this answers."""
        return [Route("POST", routes.BATCHES, "batches", self.post)]

    def withdraw(self) -> None:
        """Give up on what the spool has not taken: whoever waits gets 503, and nobody was told that it is stored."""
        for task in tuple(self._storing):
            task.cancel()

    async def settled(self) -> None:
        """Return when nothing is on its way to the spool."""
        if self._storing:
            await asyncio.wait(self._storing)

    # ---- one request

    async def post(self, call: Call) -> web.Response:
        """Raises Problem."""
        self._admit(call)
        self._check_rate(call)
        stay = self._enter(call.agent_id)
        try:
            arrival = await self._read(call, stay.lease)
            storing = again = self._known(arrival.name)
            if storing is None or not storing.done():
                self._check_room(arrival.stream)
            if storing is None:
                parcel = await self._open(arrival, stay.lease)
                # While a thread opened it the same batch may have come over another connection.
                again = self._known(arrival.name)
                storing = again or self._store(arrival, parcel, stay)
                self._charge(call, parcel)
            count = await self._stored(storing, arrival.stream)
            if again is not None:
                self._known_again.inc(count)
        finally:
            stay.leave()
        return json_response(_STORED)

    def _check_rate(self, call: Call) -> None:
        """Raise Problem (429) while this origin has sent more than it may; what it has is kept there."""
        wait = self._rates.owed(call.origin.identity) if self._rates is not None else 0.0
        if wait > 0:
            seconds = ceil(wait)
            self._limited.inc(seconds)
            raise Problem(
                429,
                "too_fast",
                "this sender exceeds limits.events_per_second_per_origin or limits.bytes_per_second_per_origin",
                "send again after Retry-After",
                retry_after_seconds=seconds,
            )

    def _charge(self, call: Call, parcel: Parcel) -> None:
        if self._rates is not None:
            section = parcel.section
            self._rates.charge(call.origin.identity, events=section.count, size_bytes=section.length)

    def _check_room(self, stream: str) -> None:
        """Raise Problem (503) while others of this stream wait already, and longer than accept_timeout."""
        if self._late_of[stream]:
            raise _spool_full()

    def _admit(self, call: Call, *, spool_id: str = "", run_id: str = "") -> None:
        """Ask the fleet, which also audits its refusals; raises Problem (403, 503)."""
        if self._gate is not None:
            admit(self._gate, call, spool_id=spool_id, run_id=run_id)

    def _tell(self, call: Call, kind: str, why: str) -> None:
        """Log and audit a refusal, now and then."""
        if self._said.allow((kind, call.agent_id)) is None:
            return
        agent, address = call.agent_id, call.origin.address
        self._log.warning(
            "agent %s at %s: batch refused: %s", agent, address, why,
            extra={**messages.AGENT_REFUSED, "agent_id": agent, "address": address},
        )  # fmt: skip
        if self._gate is not None:
            self._gate.audit(f"https_{kind}", agent_id=agent, address=address, reason=why)

    def _enter(self, agent_id: str) -> _Stay:
        crowd, limits = self._crowd, self._limits
        for key, most, name in (
            (agent_id, limits.requests_per_agent, "requests_per_agent"), (_ALL, limits.requests, "requests"),
        ):  # fmt: skip
            if crowd[key] >= most:
                raise Problem(
                    429,
                    "too_many_requests",
                    f"limits.{name} is {most}, and so many wait for the spool or are still being sent",
                    "wait for answers before sending more",
                    retry_after_seconds=BUSY_SECONDS,
                )
        return _Stay(crowd, agent_id, self._budget.lease())

    async def _read(self, call: Call, lease: Lease) -> _Arrival:
        kind = call.http.content_type
        encoding = call.http.headers.get("Content-Encoding", "identity").strip().lower()
        if kind == routes.ENVELOPE_TYPE and encoding == "identity":
            body = await self._body(call, lease)
            return self._envelope(call, body)
        if kind not in NDJSON_TYPES:
            raise Problem(
                415,
                "unknown_type",
                "this Content-Type is not taken here",
                f"send {routes.NDJSON_TYPE}, or {routes.ENVELOPE_TYPE} without a Content-Encoding",
            )
        stream = call.http.query.get("stream", "security_events")
        if stream not in STREAMS:
            raise Problem(400, "unknown_stream", "?stream= names none", f"use one of: {', '.join(sorted(STREAMS))}")
        key = _key_of(call)
        if key is None:
            self._check_room(stream)  # before the body is sent; with a key it may be durable already
        body = await self._body(call, lease)
        self._admit(call)  # once more: a slow body takes minutes, and there may be no CRL to end its connection
        return self._ndjson(call, body, encoding=encoding, stream=stream, key=key)

    async def _body(self, call: Call, lease: Lease) -> bytes:
        body = await read_body(call.http, self._limits.body, lease)
        self._received_bytes.inc(len(body))
        return body

    def _envelope(self, call: Call, body: bytes) -> _Arrival:
        try:
            envelope = unpack(body, self._limits.envelope)
            header = envelope.header
            check_header(header, agent_id=call.agent_id)
        except WrongSender as error:
            self._tell(call, "wrong_sender", str(error))
            raise Problem(403, "wrong_sender", str(error), "an agent sends its own envelopes, and only those") from None
        except TooLarge as error:
            raise too_large(str(error)) from None
        except BadEnvelope as error:
            raise _bad_batch(error) from None
        self._admit(call, spool_id=header.spool_id, run_id=header.run_id)
        known = call.connection.named or call.origin
        origin = named(known, header, received_at_ns=self._now_ns(), vouched=self._gate is not None)
        call.connection.named = origin
        return _Arrival(name_of(envelope), header.stream, header.length, lambda: open_envelope(envelope, origin))

    def _ndjson(self, call: Call, body: bytes, *, encoding: str, stream: str, key: str | None) -> _Arrival:
        limits = self._limits.envelope
        plain = encoding == "identity"

        def opened() -> Parcel:
            data = body if plain else decode(body, encoding, max_bytes=limits.length_bytes)
            return open_ndjson(data, call.origin, stream=stream, limits=limits)

        name = Name(call.agent_id, key, _hash(body)) if key is not None else None
        return _Arrival(name, stream, 0 if plain else limits.length_bytes, opened)

    async def _open(self, arrival: _Arrival, lease: Lease) -> Parcel:
        """Its events, decompressed; raises Problem (400, 413, 415, 503)."""
        body_bytes = lease.held_bytes
        lease.hold(body_bytes + arrival.length)
        try:
            in_thread = body_bytes > THREAD_BYTES
            parcel = await asyncio.to_thread(arrival.open) if in_thread else arrival.open()
        except TooLarge as error:
            raise too_large(str(error)) from None
        except BadEnvelope as error:
            raise _bad_batch(error) from None
        lease.hold(max(body_bytes, parcel.section.length))
        return parcel

    # ---- storing

    def _known(self, name: Name | None) -> "asyncio.Future[int] | None":
        """What to wait for if this batch came before; the result is its events."""
        if name is None:
            return None
        count = self._repeats.durable(name)
        if count is None:
            return self._repeats.under_way(name)
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        found.set_result(count)
        return found

    def _store(self, arrival: _Arrival, parcel: Parcel, stay: _Stay) -> "asyncio.Task[int]":
        batch = batch_of(parcel, received_at_ns=self._now_ns())
        storing = asyncio.get_running_loop().create_task(self._append(batch))
        self._storing.add(storing)
        storing.add_done_callback(self._ended)
        stay.keep_until(storing)
        if arrival.name is not None:
            self._repeats.begin(arrival.name, storing)
        return storing

    async def _append(self, batch: Batch) -> int:
        await self._accept(batch)
        count = batch.count
        self._received.inc(count)
        return count

    async def _stored(self, storing: "asyncio.Future[int]", stream: str) -> int:
        """Return once it is durable, with its events; raises Problem (503)."""
        if not storing.done():
            await asyncio.wait({storing}, timeout=self._limits.accept_seconds)
        if not storing.done():
            self._is_late(storing, stream)
            raise _spool_full()
        if storing.cancelled() or isinstance(storing.exception(), SpoolClosed):
            raise Problem(503, *STOPPING, retry_after_seconds=STOPPING_SECONDS)
        if storing.exception() is not None:
            raise Problem(
                503, "not_stored", "the spool failed to take this batch", "try again; the collector's log says why",
                retry_after_seconds=FULL_SECONDS,
            )  # fmt: skip
        return storing.result()

    def _is_late(self, storing: "asyncio.Future[int]", stream: str) -> None:
        if storing in self._late:
            return
        self._late[storing] = stream
        self._late_of[stream] += 1
        self._paused.set(1)
        if self._said.allow(("late", stream)) is not None:
            self._log.warning(
                "the spool of %s takes nothing, agents are told to come back later (503); give it room: "
                "spool.max_bytes, or the outputs that do not read", stream,
            )  # fmt: skip

    def _ended(self, storing: "asyncio.Task[int]") -> None:
        self._storing.discard(storing)
        if storing in self._late:
            self._late_of[self._late.pop(storing)] -= 1
            self._paused.set(bool(self._late))
        if storing.cancelled():
            return
        error = storing.exception()
        if error is not None and not isinstance(error, SpoolClosed) and self._said.allow(type(error)) is not None:
            self._log.error("a batch could not be stored, its agent keeps it; please report this", exc_info=error)

    def _now_ns(self) -> int:
        return int(self._clock() * 1e9)


_STORED = b'{"stored":true}'


def _spool_full() -> Problem:
    return Problem(
        503,
        "no_room",
        "the spool of this collector takes nothing at the moment",
        "use another collector, or try again later",
        retry_after_seconds=FULL_SECONDS,
    )


def _bad_batch(error: BadEnvelope) -> Problem:
    return Problem(400, "bad_batch", str(error), "the same bytes will be refused again: repair the sender")


def _hash(body: bytes) -> int:
    """128 bits: a key of a client's making may name any number of batches, unlike an envelope's."""
    return int.from_bytes(blake2b(body, digest_size=16).digest(), "big")


def _key_of(call: Call) -> str | None:
    key = call.http.headers.get(routes.IDEMPOTENCY_KEY)
    if key is None or (0 < len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        return key
    raise Problem(
        400, "bad_key", f"{routes.IDEMPOTENCY_KEY} is not 1 to {MAX_KEY_CHARACTERS} printable ASCII characters",
        "name each batch, by a UUID for example",
    )  # fmt: skip
