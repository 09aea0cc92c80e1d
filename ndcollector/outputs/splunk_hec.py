"""The `splunk_hec` output: events to Splunk's HTTP Event Collector (HEC), and to what speaks like it.

Promises:
  * with `ack: true`, when send() returns, an indexer has said that the events are indexed. Without it, that Splunk has
    them in a queue in memory: what an indexer loses when it dies is lost, and nobody can tell us;
  * an event that HEC names bad is sent alone, and only if it is refused alone is it a dead letter. HEC takes the events
    in front of a bad one or not, it does not say: they are sent again, so that none is missing;
    nd_output_resent_events_total counts them, and `| dedup event.id` in a search leaves one;
  * a token that is refused, an index that is not allowed, a queue that is full wait: nothing is dropped;
  * `time` is the event's own with its fraction, `host` its own, or the sender's address where it names none.
Refuses: exactly once: Splunk has no key by which it would know an event again; order between batches.
"""

import asyncio
from functools import lru_cache, partial
from typing import Literal, Self
from urllib.parse import urlencode
from uuid import uuid4

import orjson
from pydantic import Field, model_validator

from ndagent.core.settings import ByteSize, Duration, SettingError
from ndagent.wire.codec import frame_codec
from ndagent.wire.event_frames import Frame, Part
from ndagent.wire.record import CorruptBody, EventBatch, Origin
from ndcollector.outputs import OutputContext
from ndcollector.outputs.parts import Parts, Spoiled
from ndcollector.outputs.splunk_hec_acks import Acks
from ndcollector.outputs.splunk_hec_answers import read_taken
from ndcollector.traffic.config import HealthConfig, HttpOutputConfig
from ndcollector.traffic.credentials_config import FieldValue
from ndcollector.traffic.encoding import JSON_FORMATS, compress
from ndcollector.traffic.pool import Pool
from ndcollector.traffic.request import Exchange, Request
from ndcollector.traffic.size_limit import SizeLimit
from ndcollector.traffic.taken import Taken

INLINE_BYTES = 32 * 1024
"""So little is framed and compressed on the loop; the way to a thread and back costs more."""

_ACK_DEFAULTS = {"in_flight": 32, "timeout": "240s"}
"""An acknowledgement takes a second or more: with few sends at a time most of it would be waiting."""

_NO_HOST = b"unknown"
_frame_events = frame_codec().frame_events


class Config(HttpOutputConfig):
    """Events to Splunk's HTTP Event Collector."""

    type: Literal["splunk_hec"] = "splunk_hec"
    token: FieldValue = Field(
        description="The collector's token; keep it in a file: ${file:/etc/ndcollector/hec.token}."
    )
    endpoint: Literal["event", "raw"] = Field(
        default="event",
        description="event: each event with its own time and host. raw: lines, which Splunk takes apart by the rules "
        "of `sourcetype`.",
    )
    index: str | None = Field(default=None, min_length=1, description="Splunk's index; null: the token's own.")
    indexes: dict[str, str] = Field(default={}, description="Stream: its own index.")
    source: str | None = Field(default="ndcollector", description="Splunk's source; null: the token's own.")
    sourcetype: str | None = Field(default=None, description="Splunk's sourcetype; null: the token's own.")
    host: str | None = Field(default=None, description="Splunk's host for all events; null: each event's own.")
    fields: dict[str, str] = Field(default={}, description="Further indexed fields of all events; not with raw.")
    ack: bool = Field(
        default=False,
        description="Wait until an indexer says that events are indexed; the token must have indexer acknowledgement "
        "enabled. in_flight is 32 then and timeout 240s, where nothing else is written.",
    )
    ack_timeout: Duration = Field(default=180.0, gt=0, description="Without that word for so long, send again.")
    ack_poll: Duration = Field(default=1.0, gt=0, description="How often to ask for it.")
    compression: Literal["none", "gzip"] = Field(default="gzip", description="Of bodies (Content-Encoding).")
    batch_bytes: ByteSize = Field(
        default=640 * 2**10,
        ge=1024,
        description="Events decoded and sent together, at most about this many bytes. Splunk Cloud takes bodies of up "
        "to 1 MB, and each event gets a frame of a hundred bytes.",
    )
    max_body_bytes: ByteSize = Field(
        default=16 * 2**20,
        ge=1024,
        description="Most bytes of events in a request; a larger batch goes out in parts. After a 413 fewer are.",
    )
    health: HealthConfig | None = Field(
        default=HealthConfig(path="/services/collector/health"),
        description="Asking each endpoint whether it is well; null: requests alone tell.",
    )

    @model_validator(mode="before")
    @classmethod
    def _many_at_a_time_with_ack(cls, written: object) -> object:
        if not isinstance(written, dict) or written.get("ack") is not True:
            return written
        return {**_ACK_DEFAULTS, **written}

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.ack and self.timeout <= self.ack_timeout + self.request_timeout:
            raise SettingError(("timeout",), "must be more than ack_timeout and request_timeout together")
        if self.endpoint == "raw" and self.fields:
            raise SettingError(("fields",), "cannot be sent to the raw endpoint; use event")
        return self

    @property
    def shows_credentials(self) -> bool:
        """The token."""
        return True

    def metadata(self, stream: str) -> dict[str, str]:
        """What all events of a stream have in common."""
        found = {"source": self.source, "sourcetype": self.sourcetype, "index": self.indexes.get(stream, self.index)}
        return {name: value for name, value in found.items() if value is not None}


def build(name: str, config: Config, context: OutputContext) -> "SplunkHecOutput":
    """The output; connects at its first send."""
    return SplunkHecOutput(name, config, Pool(name, config, context), context)


class SplunkHecOutput:
    """See the module."""

    def __init__(self, name: str, config: Config, exchange: Exchange, context: OutputContext) -> None:
        self._config = config
        self._exchange = exchange
        self._resent = context.metrics.resent.labels(name)
        self._clock = asyncio.get_running_loop().time
        self._authorization = f"Splunk {config.token.get_secret_value()}"
        self._channel = str(uuid4())  # without acknowledgement the raw endpoint only wants to see one
        limit = SizeLimit(config.max_body_bytes)
        self._parts = Parts(self._send, limit=limit, taken=Taken(), clock=self._clock)
        self._acks: Acks | None = None
        if config.ack:
            self._acks = Acks(
                exchange,
                authorization=self._authorization,
                timeout_seconds=config.ack_timeout,
                poll_seconds=config.ack_poll,
                clock=self._clock,
            )

    async def send(self, events: EventBatch) -> None:
        """Return once Splunk has all of them (see the module); raises Unavailable or Rejected."""
        await self._parts.send(events, until=self._clock() + self._config.timeout / 2)

    async def sync(self) -> None:
        """What send() returned for is as durable as Splunk makes it."""

    async def aclose(self) -> None:
        """Close the connections."""
        await self._exchange.aclose()

    async def _send(self, part: EventBatch) -> None:
        if self._acks is None:
            await self._post(part, self._channel)
            return
        channel = await self._acks.channel()
        try:
            endpoint, identity = await self._post(part, channel)
        except Spoiled:
            self._acks.give_back(channel)
            raise
        try:
            await self._acks.wait(channel, identity, endpoint=endpoint)
        except BaseException:
            self._resent.inc(len(part))
            raise
        self._acks.give_back(channel)

    async def _post(self, part: EventBatch, channel: str) -> tuple[str, int]:
        """Endpoint and ackId; the latter means nothing without acknowledgement."""
        config = self._config
        make = partial(body_for, part, config)
        headers = {"Authorization": self._authorization, "X-Splunk-Request-Channel": channel}
        if config.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
        body = make() if len(part.ndjson) <= INLINE_BYTES else await asyncio.to_thread(make)
        answer = await self._exchange(Request("POST", _path(config, part.stream, channel), body, headers))
        try:
            identity = read_taken(answer)
        except Spoiled as refusal:
            suspect = len(part) - 1 if refusal.suspect is None else refusal.suspect
            self._resent.inc(suspect if 0 <= suspect < len(part) else len(part) - 1)
            raise
        if identity is None and self._acks is not None:
            self._resent.inc(len(part))
            raise self._acks.missing(answer)
        return answer.endpoint, identity or 0


def _path(config: Config, stream: str, channel: str) -> str:
    if config.endpoint == "event":
        return "/services/collector/event"
    query = config.metadata(stream) | ({"host": config.host} if config.host else {}) | {"channel": channel}
    return f"/services/collector/raw?{urlencode(query)}"


def body_for(events: EventBatch, config: Config) -> bytes:
    """The request's body."""
    if config.endpoint == "raw":
        body = events.ndjson
    elif events.format in JSON_FORMATS:
        hosts = [host_of(blob) for blob in events.origin_blobs]
        body = _frame_events(events, frame_of(config, events.stream), hosts=hosts)
    else:
        body = _texts(events, config)
    return compress(body, config.compression)


def frame_of(config: Config, stream: str) -> Frame:
    """An event in its envelope."""
    common = {**config.metadata(stream), **({"fields": config.fields} if config.fields else {})}
    host = [orjson.dumps(config.host)[1:-1]] if config.host else [Part.HOST]
    rest = b"," + orjson.dumps(common)[1:-1] if common else b""
    return (b'{"time":', Part.EPOCH, b',"host":"', *host, b'"' + rest + b',"event":', Part.LINE, b"}\n")


def _texts(events: EventBatch, config: Config) -> bytes:
    """Lines that are no JSON: their time is read by no one, so it is when their batch was received."""
    common = {"time": events.received_at_ns // 1_000_000 / 1000, **config.metadata(events.stream)}
    common |= {"fields": config.fields} if config.fields else {}
    hosts = [config.host or orjson.loads(b'"%b"' % host_of(blob)) for blob in events.origin_blobs]
    rows = zip(events.lines(), events.origins, strict=True)
    return b"".join(
        orjson.dumps({**common, "host": hosts[origin], "event": line[:-1].decode("utf-8", "replace")})
        for line, origin in rows
    )


@lru_cache(4096)
def host_of(blob: bytes) -> bytes:
    """The sender's address as JSON text, for events that name no host."""
    try:
        address = Origin.unpack(blob).address
    except CorruptBody:
        address = ""
    return orjson.dumps(address)[1:-1] or _NO_HOST
