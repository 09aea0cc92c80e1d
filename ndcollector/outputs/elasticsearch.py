"""The `elasticsearch` output: events into data streams or indexes of Elasticsearch 8 and 9 and OpenSearch 2 and 3.

Promises:
  * when send() returns, the cluster has answered for each event that it has it (the bulk API answers for each alone):
    with the default of one replica that is two copies, each in its translog and synced;
  * every event is created with `_id` = event.id: one that comes again after a lost answer, a crash or a replay is found
    there (409) and counts as delivered. That holds as long as it would go to the same backing index: behind a rollover
    a repeat is a second document with the same event.id;
  * events that the mapping refuses are dead letters, each with its own reason; the others are not sent again;
  * events that the cluster is too busy for (429, 503 within a 200) are sent again, and only these;
  * a missing index, a read-only one (full disk), missing rights, a wrong pipeline wait for a person: nothing is lost;
  * 413 cuts the batch, and later ones before they are sent.
Refuses: order between batches (`in_flight: 1` gives it; searches sort by @timestamp anyway), updating or deleting.
"""

import asyncio
import logging
import re
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.settings import ByteSize, Kind
from ndagent.wire.codec import frame_codec
from ndagent.wire.event_frames import Frame, Part, TimeSlice
from ndagent.wire.record import EventBatch
from ndcollector.outputs import OutputContext
from ndcollector.outputs.elasticsearch_answers import FILTER, read_bulk
from ndcollector.outputs.elasticsearch_template import Templates
from ndcollector.outputs.parts import Parts, TooLarge
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.encoding import compress
from ndcollector.traffic.pool import Pool
from ndcollector.traffic.request import TOO_LARGE, Exchange, Request
from ndcollector.traffic.size_limit import SizeLimit
from ndcollector.traffic.taken import Taken

INLINE_BYTES = 32 * 1024
"""So little is framed and compressed on the loop; the way to a thread and back costs more."""

_DATE = {"%Y": TimeSlice(0, 4), "%m": TimeSlice(5, 7), "%d": TimeSlice(8, 10), "%H": TimeSlice(11, 13)}
_TARGET = re.compile(r"(?:[a-z0-9]|%[YmdH])(?:[a-z0-9._-]|%[YmdH]|\{stream\})*")
_LONGEST_NAME = 200

_frame_events = frame_codec().frame_events


def check_target(target: str) -> str:
    """The name of a data stream or index; raises ValueError that shows good ones."""
    if not _TARGET.fullmatch(target) or len(target) > _LONGEST_NAME:
        raise ValueError(
            f"{target!r} is no name of a data stream or index: lower-case letters, digits, . _ -, {{stream}}, and for "
            f"indexes by time %Y %m %d %H; write logs-nd.{{stream}}-default or events-%Y.%m.%d"
        )
    return target


Target = Annotated[str, AfterValidator(check_target), Kind("the name of a data stream or index")]


class Config(HttpOutputConfig):
    """Events into Elasticsearch or OpenSearch, by the bulk API."""

    takes_formats = ("ecs", "flat")  # a document is a JSON object
    takes_syslog_header = False

    type: Literal["elasticsearch"] = "elasticsearch"
    target: Target = Field(
        default="logs-nd.{stream}-default",
        description="Data stream (logs-DATASET-NAMESPACE) or index that events go to. %Y %m %d %H of @timestamp make "
        "indexes by time: events-%Y.%m.%d.",
    )
    targets: dict[str, Target] = Field(default={}, description="Stream: its own target.")
    pipeline: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._-]+$", description="Ingest pipeline that events go through; null: none."
    )
    template: Literal["manage", "check", "none"] = Field(
        default="check",
        description="Index template of the targets. check: warn where there is none, so that fields would be guessed. "
        "manage: install ours, which needs the right to (manage_index_templates). none: do not ask.",
    )
    compression: Literal["none", "gzip"] = Field(default="gzip", description="Of bodies (Content-Encoding).")
    batch_bytes: ByteSize = Field(
        default=2 * 2**20,
        ge=1024,
        description="Events decoded and sent together, at most about this many bytes. Each send under way holds them.",
    )
    max_body_bytes: ByteSize = Field(
        default=16 * 2**20,
        ge=1024,
        description="Largest body, before compression; a larger batch goes out in parts. After a 413 smaller ones are.",
    )

    def target_of(self, stream: str) -> str:
        """Where a stream goes, with its % still in it."""
        return self.targets.get(stream, self.target).replace("{stream}", stream)


def build(name: str, config: Config, context: OutputContext) -> "ElasticsearchOutput":
    """The output; connects at its first send."""
    return ElasticsearchOutput(name, config, Pool(name, config, context))


class ElasticsearchOutput:
    """See the module."""

    def __init__(self, name: str, config: Config, exchange: Exchange) -> None:
        self._config = config
        self._exchange = exchange
        self._clock = asyncio.get_running_loop().time
        self._taken = Taken()
        limit = SizeLimit(config.max_body_bytes)
        self._parts = Parts(self._send, limit=limit, taken=self._taken, clock=self._clock)
        self._templates = Templates(
            config.template,
            exchange,
            log=logging.getLogger(name),
            patience_seconds=config.request_timeout / 2,
        )

    async def send(self, events: EventBatch) -> None:
        """Return once the cluster has all of them; raises Unavailable or Rejected."""
        target = self._config.target_of(events.stream)
        await self._templates.see_to(target)
        await self._parts.send(events, until=self._clock() + self._config.timeout / 2)
        self._templates.sent(target)

    async def sync(self) -> None:
        """A created document is in the translog."""

    async def aclose(self) -> None:
        """Close the connections."""
        self._templates.close()
        await self._exchange.aclose()

    async def _send(self, part: EventBatch) -> None:
        target = self._config.target_of(part.stream)
        body = partial(_body, part, target, self._config.compression)
        headers = {"Content-Type": "application/x-ndjson"}
        if self._config.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
        content = body() if len(part.ndjson) <= INLINE_BYTES else await asyncio.to_thread(body)
        answer = await self._exchange(Request("POST", self._path(target), content, headers, idempotent=True))
        if answer.status == TOO_LARGE:
            raise TooLarge(answer.reason, str(answer.status))
        outcome = read_bulk(answer, len(part))
        if outcome.is_clean:
            return
        left = {*outcome.refused, *outcome.again, *outcome.blocked}
        self._taken.note(part.select([index for index in range(len(part)) if index not in left]))
        if outcome.refused:
            raise Rejected(next(iter(outcome.refused.values())), reasons=outcome.refused)
        took = f"took {len(part) - len(left)} of {len(part)} events"
        said = f"{answer.endpoint} {took}, of others it says {outcome.reason}"
        if outcome.blocked:
            raise Unavailable(f"{said}; a person must act: check that {target} exists and may be written to")
        raise Unavailable(said)

    def _path(self, target: str) -> str:
        place = "" if "%" in target else f"/{target}"
        pipeline = f"&pipeline={self._config.pipeline}" if self._config.pipeline else ""
        return f"{place}/_bulk?filter_path={FILTER}{pipeline}"


def _body(events: EventBatch, target: str, compression: Literal["none", "gzip"]) -> bytes:
    return compress(_frame_events(events, frame_of(target), hosts=[b""] * len(events.origin_blobs)), compression)


def frame_of(target: str) -> Frame:
    """Action line and event; the target stands in the URL unless it depends on the event's time."""
    if "%" not in target:
        return (b'{"create":{"_id":"', Part.ID, b'"}}\n', Part.LINE, b"\n")
    name = [_DATE.get(piece, piece.encode()) for piece in re.split(r"(%[YmdH])", target)]
    return (b'{"create":{"_index":"', *name, b'","_id":"', Part.ID, b'"}}\n', Part.LINE, b"\n")
