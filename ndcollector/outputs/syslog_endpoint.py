"""Receivers of syslog over TCP, in order of preference: the settings that `syslog_tls` and `relp` share, and the way to
the first receiver that answers.

Promises: receivers are tried in the order in which they are written, each for `connect_timeout`, in which it has to
agree to what is spoken as well; one that failed, or took no events for long, is tried last for a while; while another
than the first is used, those before it are looked for every RETURN_SECONDS; certificates and keys are read anew for
each connection, and a far side without a good certificate for its own name gets nothing.
Refuses: more than one connection at a time (events arrive in order), and knowing what is spoken on it.
"""

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.log import Throttle
from ndagent.core.settings import ByteSize, Duration, Kind, Settings
from ndagent.wire.record import EventBatch
from ndcollector.outputs.syslog_connection import Connection
from ndcollector.traffic.tls import ClientTls

AWAY_SECONDS = 10.0
"""How long a receiver that failed is tried last."""

RETURN_SECONDS = 60.0
"""How often a receiver that is preferred to the one in use is looked for."""

_SAY_EVERY_SECONDS = 60.0
_ENDPOINT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/,\[\]]+):(\d{1,5})")


def check_endpoint(text: str) -> str:
    """A receiver's address; raises ValueError that shows a good one."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"{text!r} is not a receiver's address; write host:port such as siem-1:6514 or [::1]:6514")
    return text


EndpointText = Annotated[str, AfterValidator(check_endpoint), Kind("a receiver's address (host:port)")]


class SyslogReceivers(Settings):
    """Where the receivers are, and how much is sent together."""

    endpoints: tuple[EndpointText, ...] = Field(
        min_length=1,
        max_length=16,
        description="Receivers that take the same events; the first that answers gets them all.",
        examples=[["siem-1:6514", "siem-2:6514"]],
    )
    connect_timeout: Duration = Field(
        default=5.0, gt=0, description="A receiver that takes no connection within this time is tried no longer."
    )
    max_message_bytes: ByteSize = Field(
        default=128 * 1024,
        ge=1024,
        description="A longer message becomes a dead letter: many receivers close the connection at one, each time it "
        "comes. librelp takes 128 KiB unless it is told otherwise, rsyslog cuts at its maxMessageSize.",
    )
    in_flight: int = Field(
        default=1, ge=1, le=1, description="One: what was received first is sent first, through any failure."
    )
    batch_bytes: ByteSize = Field(
        default=2**20, ge=1024, description="Events decoded and sent together, at most about this many bytes."
    )


def check_lengths(events: EventBatch, most_bytes: int) -> None:
    """Raises Rejected for messages that are too long."""
    if max(events.lengths, default=0) <= most_bytes + 1:  # with its LF
        return
    reasons = {
        position: f"the message has {length - 1} bytes, max_message_bytes are {most_bytes}"
        for position, length in enumerate(events.lengths)
        if length - 1 > most_bytes
    }
    raise Rejected("longer than max_message_bytes", reasons=reasons)


class Endpoint(NamedTuple):
    """One receiver."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def of(cls, text: str) -> "Endpoint":
        """From what check_endpoint let pass."""
        host, _, port = text.rpartition(":")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))


Received = Callable[[Connection, bytes], None]
Agree = Callable[[Connection], Awaitable[None]]
"""Returns when the far side is ready for events; raises ConnectionLost."""


def _ignore(_connection: Connection, _data: bytes) -> None:
    """A receiver of plain syslog has nothing to say."""


async def _at_once(_connection: Connection) -> None:
    """Plain syslog begins with the first message."""


class Receivers:
    """Opens connections. `tls` is None for plain TCP; `clock` gives seconds and never jumps.

    `send_seconds` is how long a send may take before it is given up.
    """

    def __init__(
        self, config: SyslogReceivers, *, name: str, tls: ClientTls | None, server_name: str | None,
        send_seconds: float, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._endpoints = [Endpoint.of(text) for text in config.endpoints]
        self._timeout_seconds = config.connect_timeout
        self._long_seconds = send_seconds / 2
        self._tls = tls
        self._server_name = server_name
        self._clock = clock
        self._away_until: dict[Endpoint, float] = {}
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=clock)
        self._last: Endpoint | None = None
        self._looked_at = clock()

    async def connect(
        self, received: Received = _ignore, agree: Agree = _at_once, *, before: Endpoint | None = None
    ) -> Connection:
        """A connection to the first receiver that answers and agrees; `received` gets what it says. Raises Unavailable.

        Only to one that stands before another, if that is given.
        """
        context = await self._context()
        reasons = []
        for endpoint in self._in_order(before):
            try:
                connection = await self._open(endpoint, context, received, agree)
            except Unavailable as error:
                self.leave(endpoint)
                reasons.append(error.reason)
            else:
                self._say(endpoint, reasons)
                return connection
        raise Unavailable("; ".join(reasons))

    def leave(self, endpoint: Endpoint) -> None:
        """It failed: let others have a turn."""
        self._away_until[endpoint] = self._clock() + AWAY_SECONDS

    def given_up(self, endpoint: Endpoint, seconds: float) -> None:
        """A send to it was cancelled after so long: that may be its fault only if it had the time."""
        if seconds >= self._long_seconds:
            self.leave(endpoint)

    def may_return(self, used: Endpoint) -> bool:
        """Whether it is time to look for one that is preferred to this one."""
        if used == self._endpoints[0] or self._clock() - self._looked_at < RETURN_SECONDS:
            return False
        self._looked_at = self._clock()
        return True

    async def _context(self) -> ssl.SSLContext | None:
        if self._tls is None:
            return None
        await asyncio.to_thread(self._tls.look)
        return self._tls.context

    def _in_order(self, before: Endpoint | None) -> list[Endpoint]:
        now = self._clock()
        end = len(self._endpoints) if before is None else self._endpoints.index(before)
        return sorted(self._endpoints[:end], key=lambda one: self._away_until.get(one, 0.0) > now)

    async def _open(
        self, endpoint: Endpoint, context: ssl.SSLContext | None, received: Received, agree: Agree
    ) -> Connection:
        session = None if context is None else (context, self._server_name or endpoint.host)
        connection = Connection(endpoint, session, received)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: connection, endpoint.host, endpoint.port)
                await connection.opened()
                await agree(connection)
        except TimeoutError:
            connection.abort("no answer")
            raise Unavailable(f"{endpoint}: no answer within {self._timeout_seconds:g}s") from None
        except OSError as error:  # ConnectionLost is one
            connection.abort("could not be opened")
            raise Unavailable(f"{endpoint}: {_in_words(error)}") from error
        except BaseException:
            connection.abort("given up")
            raise
        return connection

    def _say(self, endpoint: Endpoint, reasons: list[str]) -> None:
        self._looked_at = self._clock()
        if reasons and self._throttle.allow("left out") is not None:
            self._log.warning("%s; sending to %s instead", "; ".join(reasons), endpoint)
        elif endpoint != self._last:
            self._log.info("sending to %s", endpoint)
        self._last = endpoint


def _in_words(error: OSError) -> str:
    """asyncio's own words for a refused connection name its arguments, not what happened."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)
