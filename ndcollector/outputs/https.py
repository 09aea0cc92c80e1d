"""The `https` output: batches of events by POST or PUT to anything that speaks HTTP.

Promises:
  * when send() returns, the far side has answered each event with a status of success (`success`, or any 2xx; of 207,
    which says "some", only the answer's word with `rejected_field`);
  * a request's Idempotency-Key is the same however often its events are sent again, and another one after an operator's
    replay, so that a receiver that remembers keys takes each batch once;
  * 413 cuts the batch, and later ones before they are sent; the part that was taken is not sent again; an event that
    alone is too large is a dead letter;
  * with `rejected_field`, only the events that the answer names are dead letters;
  * a receiver that never took a compressed body and refuses one is asked without compression before anything is called
    refused.
Refuses: order between requests (`in_flight: 1` gives it), and knowing what a 2xx of somebody else's is worth: give the
URL of something that stores before it answers.

How endpoints, credentials and retries work: ndcollector/traffic. For Splunk and Elasticsearch there are outputs that
read their answers.
"""

import asyncio
import logging
import zlib
from array import array
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ndagent.core.interfaces import MAX_RESPONSE_CHARACTERS, Rejected, Unavailable
from ndagent.core.settings import ByteSize, Kind
from ndagent.wire.record import EventBatch
from ndcollector.outputs import OutputContext
from ndcollector.outputs.parts import as_positions, cut
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.encoding import Compression, Encoding, compress, content_type, encode
from ndcollector.traffic.pool import Pool
from ndcollector.traffic.refused_events import check_path, refused
from ndcollector.traffic.request import TOO_LARGE, Answer, Exchange, Request, judge
from ndcollector.traffic.size_limit import SizeLimit
from ndcollector.traffic.taken import Taken

INLINE_BYTES = 32 * 1024
"""So little is encoded and compressed on the loop; the way to a thread and back costs more."""

_MAYBE_THE_COMPRESSION = (400, 406, 415, 422)
_MULTI_STATUS = 207
_CONFLICT = 409
"""What receivers that heed Idempotency-Key say to a repeat while the first request is still being worked on (the IETF's
draft of that field): after a timeout of ours, or of a hedge."""

RefusedPath = Annotated[str, AfterValidator(check_path), Kind("a path such as rejected or errors[].index")]


class Config(HttpOutputConfig):
    """Batches of events by HTTP."""

    type: Literal["https"] = "https"
    method: Literal["POST", "PUT"] = Field(default="POST", description="The request's method.")
    encoding: Encoding = Field(
        default="ndjson", description="A body: one event a line, a JSON array of them, or a msgpack array."
    )
    compression: Compression = Field(
        default="gzip", description="Of bodies (Content-Encoding). gzip and zstd leave about a tenth of log lines."
    )
    success: tuple[Annotated[int, Field(ge=100, le=599)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Statuses that mean that the events are the far side's; null: any 2xx (207 with rejected_field).",
    )
    rejected_field: RefusedPath | None = Field(
        default=None,
        description="Where the answer's JSON names events that were refused, by position in the request, from 0: "
        "rejected, or errors[].index. They become dead letters; the others were taken by a 2xx, and are sent again "
        "after a 4xx. null: it is all or nothing.",
    )
    idempotency_header: str | None = Field(
        default="Idempotency-Key",
        pattern=r"^[A-Za-z0-9-]{1,100}$",
        description="Header field with a key that is the same whenever the same events are sent again; null: none.",
    )
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


def build(name: str, config: Config, context: OutputContext) -> "HttpsOutput":
    """The output; connects at its first send."""
    return HttpsOutput(name, config, Pool(name, config, context), started_at=context.clock())


class HttpsOutput:
    """See the module. `started_at` (Unix seconds) tells this process's replays from earlier ones."""

    def __init__(self, name: str, config: Config, exchange: Exchange, *, started_at: float) -> None:
        self._config = config
        self._exchange = exchange
        self._replay_mark = f"-replay-{int(started_at)}"
        self._clock = asyncio.get_running_loop().time
        self._limit = SizeLimit(config.max_body_bytes)
        self._taken = Taken()
        self._compression: Compression = config.compression
        self._took_compressed = False
        self._log = logging.getLogger(name)

    async def send(self, events: EventBatch) -> None:
        """Return once the far side has all of them; raises Unavailable or Rejected."""
        rest = self._taken.rest(events)
        parts = [rest] if len(rest) else []
        while parts:
            part = parts.pop(0)
            pieces = cut(part, self._limit.most_bytes(self._clock()))
            if len(pieces) > 1:
                parts = [*pieces, *parts]
                continue
            try:
                again = await self._send(part)
            except Rejected as refusal:
                raise as_positions(refusal, part, events) from refusal
            if again:
                parts = [*cut(part, len(part.ndjson) // 2), *parts]
            elif part is not events:
                self._taken.note(part)
        self._taken.forget(events)

    async def sync(self) -> None:
        """A success was the far side's word."""

    async def aclose(self) -> None:
        """Close the connections."""
        await self._exchange.aclose()

    async def _send(self, part: EventBatch) -> bool:
        """True: it was too large and must be cut. False: the far side has it. Raises Unavailable or Rejected."""
        answer = await self._ask(part, self._compression)
        if self._may_be_the_compression(answer):
            plain = await self._ask(part, "none")
            if self._is_success(plain):
                self._compress_no_more(answer)
                answer = plain
        if answer.status == TOO_LARGE and not self._is_success(answer):
            return self._learn_from(answer, part)
        self._judge(answer, part)
        self._took_compressed = True
        return False

    async def _ask(self, part: EventBatch, compression: Compression) -> Answer:
        config = self._config
        if len(part.ndjson) <= INLINE_BYTES:
            body = compress(encode(part, config.encoding), compression)
        else:
            body = await asyncio.to_thread(_body, part, config.encoding, compression)
        headers = {"Content-Type": content_type(config.encoding, part.format), "ND-Stream": part.stream}
        if compression != "none":
            headers["Content-Encoding"] = compression
        if config.idempotency_header is not None:
            headers[config.idempotency_header] = self._key(part)
        is_known_by_key = config.idempotency_header is not None
        return await self._exchange(Request(config.method, "", body, headers, idempotent=is_known_by_key))

    def _key(self, part: EventBatch) -> str:
        """Of these events, and of no others: where some between the ends were left out, a check sum says which."""
        first, last = part.sequences[0], part.sequences[-1]
        key = f"{part.spool_id}-{first}-{last}-{len(part)}"
        if last - first + 1 != len(part):
            key += f"-{zlib.crc32(array('Q', part.sequences)):08x}"
        return key + self._replay_mark if part.replay else key

    def _is_success(self, answer: Answer) -> bool:
        if self._config.success is not None:
            return answer.status in self._config.success
        if answer.status == _MULTI_STATUS and self._config.rejected_field is None:
            return False
        return 200 <= answer.status < 300

    def _may_be_the_compression(self, answer: Answer) -> bool:
        if self._compression == "none" or self._took_compressed or self._is_success(answer):
            return False
        return answer.status in _MAYBE_THE_COMPRESSION

    def _compress_no_more(self, refusal: Answer) -> None:
        if self._compression != "none":  # several sends may find out at a time
            self._log.warning(
                "%s refuses %s bodies (%d) and takes plain ones, which it gets from now on; set compression: none",
                refusal.endpoint, self._compression, refusal.status,
            )
            self._compression = "none"

    def _learn_from(self, answer: Answer, part: EventBatch) -> bool:
        if len(part) == 1:
            raise Rejected(answer.reason, [0], response=_text(answer))
        size = len(part.ndjson)
        most = self._limit.refused(size, self._clock())
        self._log.info("%s takes no body of %d bytes; sending at most %d from now on", answer.endpoint, size, most)
        return True

    def _judge(self, answer: Answer, part: EventBatch) -> None:
        if not self._is_success(answer):
            if answer.status == _CONFLICT and self._config.idempotency_header is not None:
                raise Unavailable(f"{answer.reason}; an earlier request with these events is still under way there")
            self._refuse(answer, part)
            if answer.status == _MULTI_STATUS:
                raise Unavailable(f"{answer.reason}; some events may be refused inside: set rejected_field")
            raise Unavailable(f"{answer.reason}; this status is not among `success`: add it, or correct url")
        try:
            indexes = self._named(answer, part)
        except ValueError as error:
            raise Unavailable(
                f"{answer.endpoint} answered {answer.status}, but what it says {error}; correct rejected_field"
            ) from error
        if indexes:
            named = set(indexes)
            self._taken.note(part.select([index for index in range(len(part)) if index not in named]))
            raise Rejected(answer.reason, indexes, response=_text(answer))

    def _refuse(self, answer: Answer, part: EventBatch) -> None:
        """As `judge`, but with the events that a refusal names: it took none, and the others are sent again."""
        try:
            judge(answer)
        except Rejected as refusal:
            try:
                indexes = self._named(answer, part)
            except ValueError:
                indexes = []  # a refusal in other words, such as a proxy's page
            raise Rejected(refusal.reason, indexes or None, response=_text(answer)) from refusal

    def _named(self, answer: Answer, part: EventBatch) -> list[int]:
        path = self._config.rejected_field
        return [] if path is None else refused(answer.body, path, count=len(part))


def _body(events: EventBatch, encoding: Encoding, compression: Compression) -> bytes:
    return compress(encode(events, encoding), compression)


def _text(answer: Answer) -> str:
    return f"{answer.status}\n{answer.body[:MAX_RESPONSE_CHARACTERS].decode('utf-8', 'replace')}"
