"""The `relp` output: events as syslog over RELP, which rsyslog answers message by message. Nothing answered is lost.

Promises:
  * when send() returns the receiver has said 200 to each event. What that is worth is the receiver's to say: rsyslog
    says it when the message is in its queue, so that queue should be one that a crash of it survives;
  * 500 is Rejected, with the position: that event becomes a dead letter, the others are not sent again;
  * a connection that breaks, and a server that closes, is Unavailable: what was answered is not sent again, what was
    not is (counted by nd_output_resent_events_total), with the same event.id;
  * one connection, `window` messages unanswered at most, order of receipt, also over a failure.
Refuses: plain TCP without being told so.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.wire.record import EventBatch
from ndagent.wire.relp import Response
from ndcollector.formats import Format, FormatConfig
from ndcollector.outputs import OutputContext
from ndcollector.outputs.relp_session import OK, Session
from ndcollector.outputs.syslog_connection import ConnectionLost
from ndcollector.outputs.syslog_endpoint import Receivers, SyslogReceivers, check_lengths
from ndcollector.outputs.syslog_tls import with_header
from ndcollector.routing.config import RoutedConfig
from ndcollector.traffic.tls import ClientTls, ClientTlsConfig


class Config(SyslogReceivers, RoutedConfig):
    """Events as syslog over RELP, each acknowledged by the receiver."""

    type: Literal["relp"] = "relp"
    format: Format = Field(
        default=FormatConfig(name="raw"),
        description="The message as it came, where it was kept, or another form; cef, leef, ecs and flat get a syslog "
        "header.",
    )
    tls: ClientTlsConfig | None = Field(
        default=ClientTlsConfig(), description="TLS to the receiver; null means plain TCP, which anybody can read."
    )
    window: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="Messages under way without an answer, at most. librelp's own is 128.",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_header(cls, written: object) -> object:
        return with_header(written)


def build(name: str, config: Config, context: OutputContext) -> "RelpOutput":
    """The output; connects at its first send."""
    return RelpOutput(name, config, context)


class RelpOutput:
    """See the module."""

    def __init__(self, name: str, config: Config, context: OutputContext) -> None:
        self._window = config.window
        self._most_bytes = config.max_message_bytes
        self._resent = context.metrics.resent.labels(name)
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        tls = None if config.tls is None else ClientTls(config.tls, name=name, metrics=context.metrics)
        self._receivers = Receivers(
            config,
            name=name,
            tls=tls,
            server_name=config.tls.server_name if config.tls is not None else None,
            send_seconds=config.timeout,
            clock=self._clock,
        )
        self._turn = asyncio.Lock()
        self._session: Session | None = None
        self._batches: dict[tuple[str, str], _Progress] = {}

    async def send(self, events: EventBatch) -> None:
        """Return once the receiver said yes to each event; raises Unavailable or Rejected."""
        check_lengths(events, self._most_bytes)
        async with self._turn:
            session = await self._opened()
            progress = self._progress(events)
            positions = progress.begin(events.sequences)
            self._resent.inc(progress.again)
            lines, begun = events.lines(), self._clock()
            try:
                messages = [lines[position][:-1] for position in positions]
                await session.deliver(messages, window=self._window, answer=progress.note)
            except ConnectionLost as error:
                self._receivers.leave(session.connection.endpoint)
                raise self._drop(session, str(error)) from error
            except BaseException:
                self._receivers.given_up(session.connection.endpoint, self._clock() - begun)
                self._drop(session, "a send was given up")
                raise
            if refused := progress.refused:
                raise Rejected(f"the receiver answered {next(iter(refused.values()))}", reasons=refused)
            del self._batches[events.stream, events.spool_id]

    async def sync(self) -> None:
        """Each event was answered for."""

    async def aclose(self) -> None:
        """Close the session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _opened(self) -> Session:
        session = self._session
        if session is not None and session.connection.lost is not None:
            self._drop(session, session.connection.lost)
        if self._session is not None and self._receivers.may_return(self._session.connection.endpoint):
            await self._return(self._session)
        if self._session is None:
            self._session = await Session.open(self._receivers.connect)
        return self._session

    async def _return(self, session: Session) -> None:
        """To a receiver that is preferred to this one, if it answers; between two batches nothing is unanswered."""
        before = session.connection.endpoint
        with suppress(Unavailable):
            self._session = await Session.open(partial(self._receivers.connect, before=before))
            await session.close()

    def _drop(self, session: Session, reason: str) -> Unavailable:
        endpoint = session.connection.endpoint
        if self._session is session:
            self._session = None
        session.connection.abort(reason)
        return Unavailable(f"{endpoint}: {reason}")

    def _progress(self, events: EventBatch) -> "_Progress":
        """What is known of a batch that is being sent, here perhaps again or a part of it."""
        key = events.stream, events.spool_id
        known = self._batches.get(key)
        if known is None or events.replay or known.tried.isdisjoint(events.sequences):
            known = self._batches[key] = _Progress()
        return known


class _Progress:
    """Of a stream's batch whose send has not ended well yet: what was answered, whichever part of it is sent next."""

    def __init__(self) -> None:
        self.tried: set[int] = set()
        self.again = 0
        self.refused: dict[int, str] = {}
        self._taken: set[int] = set()
        self._sequences: Sequence[int] = ()
        self._positions: list[int] = []

    def begin(self, sequences: Sequence[int]) -> Sequence[int]:
        """Positions of the events that have no yes yet; `again` is how many of them were sent before."""
        self.refused = {}
        self._sequences = sequences
        self._positions = [position for position, one in enumerate(sequences) if one not in self._taken]
        self.again = sum(sequences[position] in self.tried for position in self._positions)
        self.tried.update(sequences)
        return self._positions

    def note(self, index: int, response: Response) -> None:
        """The answer to one of those."""
        position = self._positions[index]
        if response.status == OK:
            self._taken.add(self._sequences[position])
        else:
            self.refused[position] = f"{response.status} {response.text}".rstrip()
