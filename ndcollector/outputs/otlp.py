"""The `otlp` output: events as OpenTelemetry log records over HTTP (OTLP 1.x, `POST /v1/logs`, binary protobuf).

Promises:
  * when send() returns, the receiver answered success for all of the request's records;
  * a record is the whole event (otlp_records.py says what goes where), with its event.id as log.record.uid: after a
    lost answer records come twice, with the same one. The protocol has no other way to tell them;
  * 429, 502, 503, 504 and connections that end early are sent again, after Retry-After where there is one; 413 is
    halved; any other 4xx is a dead letter, with the text of the receiver's google.rpc.Status, once halving has found
    which events it is about;
  * *partial success* (200, `rejected_log_records` above zero) loses nothing: the receiver dropped some of the records,
    does not say which, and the specification forbids to send the request again. By default the whole request becomes
    dead letters that say so: some of these events arrived, none is gone. `partial_success: bisect` sends halves until
    the guilty ones are alone instead, and what was taken arrives up to a dozen times; that is for receivers that
    de-duplicate by log.record.uid;
  * a 200 that is no OTLP answer (a portal's page, an error in JSON) is not taken for success.
Refuses: gRPC, JSON encoding, and giving up on other 5xx as the specification wants it: a fault of the receiver would
empty the spool into dead letters. They wait.
"""

import asyncio
import logging
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.log import Throttle
from ndagent.core.settings import ByteSize, SettingError
from ndagent.wire import otlp as wire
from ndagent.wire.record import EventBatch
from ndcollector.outputs import OutputContext
from ndcollector.outputs.otlp_records import Encoder
from ndcollector.traffic.config import HttpOutputConfig, Url
from ndcollector.traffic.encoding import compress
from ndcollector.traffic.pool import Pool
from ndcollector.traffic.request import Answer, Exchange, Request, judge

_PATH = "/v1/logs"
_SAY_EVERY_SECONDS = 60.0


class Config(HttpOutputConfig):
    """Events as OpenTelemetry log records, over HTTP."""

    type: Literal["otlp"] = "otlp"
    url: Url | None = Field(
        default=None, description="Of the receiver; or `urls`.", examples=["https://otel.example.net:4318"]
    )
    path: str = Field(default=_PATH, pattern=r"^/[!-~]*$", description="Where the receiver takes logs, below the URL.")
    compression: Literal["gzip", "none"] = Field(default="gzip", description="Of request bodies.")
    partial_success: Literal["dead_letter", "bisect"] = Field(
        default="dead_letter",
        description="When the receiver dropped some of a request's records and does not say which: keep the whole "
        "request as dead letters, or send halves of it until they are found, which duplicates the others.",
    )
    batch_bytes: ByteSize = Field(
        default=2**20,
        ge=1024,
        le=16 * 2**20,
        description="Events sent together, at most about this many bytes: a request. Receivers take 20MiB, and a "
        "partial success concerns a whole request.",
    )

    @model_validator(mode="after")
    def _has_the_path_once(self) -> Self:
        if any(url.endswith(_PATH) for url in self.endpoints) and self.path == _PATH:
            key = "urls" if self.urls else "url"
            raise SettingError((key,), f"leave {_PATH} out: it is in `path`, which follows the URL")
        return self


def build(name: str, config: Config, context: OutputContext) -> "OtlpOutput":
    """The output; connects at its first send."""
    return OtlpOutput(name, config, context, Pool(name, config, context))


class OtlpOutput:
    """See the module."""

    def __init__(self, name: str, config: Config, context: OutputContext, exchange: Exchange) -> None:
        self._config = config
        self._exchange = exchange
        self._encoder = Encoder()
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=context.clock)
        encoding = {"content-encoding": "gzip"} if config.compression == "gzip" else {}
        self._headers = {"content-type": "application/x-protobuf", "accept": "application/x-protobuf", **encoding}

    async def send(self, events: EventBatch) -> None:
        """Return once the receiver has taken all of the events; raises Unavailable or Rejected."""
        body = await asyncio.to_thread(self._encode, events)
        answer = await self._exchange(Request("POST", self._config.path, body, self._headers))
        if answer.status >= 400 and (said := wire.read_status(answer.body, is_json=_is_json(answer))):
            answer = replace(answer, body=said.encode())
        judge(answer)
        self._heed(answer, len(events))

    async def sync(self) -> None:
        """Nothing to do: what send() returned for is the receiver's."""

    async def aclose(self) -> None:
        """Close the connections."""
        await self._exchange.aclose()

    def _encode(self, events: EventBatch) -> bytes:
        return compress(self._encoder.encode(events), self._config.compression)

    def _heed(self, answer: Answer, sent: int) -> None:
        """What a receiver that answered success has to say; raises Rejected for a partial one."""
        outcome = _outcome(answer)
        if outcome.rejected > 0:
            said = f": {outcome.text}" if outcome.text else ""
            alone = self._config.partial_success == "bisect" or sent == 1
            reason = f"{answer.endpoint} dropped {outcome.rejected} of {sent} records{said}"
            if not alone and outcome.rejected < sent:
                reason = f"partial_success: {reason}; it does not say which, so the others of these events arrived"
            named = None if alone else range(sent)
            raise Rejected(reason, named, response=f"{answer.status}\n{outcome.text}")
        if outcome.text and self._throttle.allow("warning") is not None:
            self._log.warning("%s took all events and warns: %s", answer.endpoint, outcome.text[:300])


def _outcome(answer: Answer) -> wire.Outcome:
    """Raises Unavailable for an answer that OTLP does not know: who gave it has not taken the events."""
    kind = _kind(answer)
    try:
        if kind in ("application/x-protobuf", "application/json"):
            return wire.read_response(answer.body, is_json=_is_json(answer)) if answer.body else wire.Outcome()
        return _outcome_of_any_kind(answer.body)
    except ValueError:
        pass
    raise Unavailable(
        f"{answer.endpoint} answered {answer.status} with {kind} that is no OTLP answer; check its URL"
    )


def _outcome_of_any_kind(body: bytes) -> wire.Outcome:
    """Of an answer that does not say what it is: some leave that out, some receivers say "ok"; raises ValueError."""
    try:
        return wire.read_response(body, is_json=False)
    except ValueError:
        start = body.lstrip()[:1]
    if start == b"<":
        raise ValueError("a page")
    return wire.read_response(body, is_json=True) if start == b"{" else wire.Outcome()


def _kind(answer: Answer) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_json(answer: Answer) -> bool:
    return _kind(answer) == "application/json"
