"""HTTPS to a collector: HTTP/1.1 by h11 over asyncio streams, one connection kept open, through a proxy if need be.

Promises: every answer is whole and at most `max_answer_bytes`, or HttpError says in words what went wrong, within
`timeout_seconds`, and within `connect_timeout_seconds` where nobody is there; a kept connection that the far side
closed meanwhile is opened anew, once, before the caller hears of it; a request that is cancelled or fails leaves no
half-used connection behind; nothing that a proxy said in clear is ever taken for the collector's answer.
Refuses: redirects (no collector sends one: an answer of 3xx is the caller's to judge), cookies, HTTP/2, several
requests at a time (open several connections).

Not aiohttp: as a client it would cost each agent 10 MB of memory and 0.2 s of its start.
"""

import asyncio
import base64
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import h11

READ_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 1 << 20


class HttpError(Exception):
    """No usable answer; the text names the far side, what happened and, where it can be told, the remedy."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect. `address` is tried instead of resolving `host`, whose name the certificate must have."""

    host: str
    port: int
    address: str | None = None

    @classmethod
    def parse(cls, endpoint: str) -> "Place":
        """From `host:port`; an IPv6 address stands in brackets."""
        host, _, port = endpoint.rpartition(":")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f" ({self.address})" if self.address and self.address != self.host else "")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that does CONNECT (RFC 9110 §9.3.6)."""

    host: str
    port: int
    authorization: str = ""

    @classmethod
    def parse(cls, url: str) -> "Proxy":
        """From `http://[user:password@]host:port`; raises ValueError that shows a good example."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or not parts.hostname or port is None or parts.path.strip("/"):
            raise ValueError(f"{url!r} is not a proxy; write http://proxy.example.net:3128")
        if parts.username is None:
            return cls(parts.hostname, port)
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return cls(parts.hostname, port, "Basic " + base64.b64encode(login.encode()).decode())


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names are lower-case, of repeated ones the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after_seconds(self) -> float | None:
        """What Retry-After asks for, where it is a number of seconds."""
        text = self.headers.get("retry-after", "")
        return float(text) if text.isascii() and text.isdigit() else None


class HttpsConnection:
    """One place, one connection at a time, opened when it is needed."""

    def __init__(
        self,
        place: Place,
        *,
        context: ssl.SSLContext,
        timeout_seconds: float,
        connect_timeout_seconds: float | None = None,
        proxy: Proxy | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.place = place
        self._context = context
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds or timeout_seconds
        self._proxy = proxy
        self._max_answer_bytes = max_answer_bytes
        self._turn = asyncio.Lock()
        self._state: h11.Connection | None = None
        self._heard = False  # anything of the present request's answer
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """One exchange; waits for the one before it. Raises HttpError."""
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    return await self._exchange(method, path, dict(headers or {}), body)
            except TimeoutError:
                raise HttpError(f"{self.place}: no answer within {self._timeout_seconds:g} s") from None
            except (OSError, h11.ProtocolError, EOFError, UnicodeError) as error:  # the last: a name DNS cannot have
                raise HttpError(f"{self.place}: {in_words(error)}") from error
            finally:
                if self._state is not None and self._state.states != {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}:
                    self._drop()

    async def aclose(self) -> None:
        """Close the connection; safe at any time."""
        self._drop()

    async def _exchange(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        is_kept = self._state is not None
        while True:
            if self._state is None:
                await self._open()
            self._heard = False
            try:
                return await self._talk(method, path, headers, body)
            except (OSError, EOFError, h11.RemoteProtocolError):
                if not is_kept or self._heard:
                    raise
                is_kept = False  # it was closed while nobody used it: that says nothing about the far side
                self._drop()

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                self._reader, self._writer = await (self._dial() if self._proxy is None else self._dial_by(self._proxy))
        except TimeoutError:
            raise ConnectionError(f"no connection within {self._connect_timeout_seconds:g} s") from None
        self._state = h11.Connection(h11.CLIENT)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = self.place
        return await asyncio.open_connection(
            place.address or place.host, place.port, ssl=self._context, server_hostname=place.host
        )

    async def _dial_by(self, proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """TLS gets a reader of its own: what stands in the proxy's behind its answer came in clear, from anybody."""
        loop = asyncio.get_running_loop()
        clear, reader = asyncio.StreamReader(), asyncio.StreamReader()
        transport, _ = await loop.create_connection(
            lambda: asyncio.StreamReaderProtocol(clear), proxy.host, proxy.port
        )
        try:
            state = h11.Connection(h11.CLIENT)
            transport.write(_connect_request(state, proxy, self.place))
            _check_connected(await _next(state, clear), proxy, self.place)
            protocol = asyncio.StreamReaderProtocol(reader)
            tls = await loop.start_tls(transport, protocol, self._context, server_hostname=self.place.host)
            if tls is None:
                raise ConnectionError(f"proxy {proxy.host}:{proxy.port} closed it")  # noqa: TRY301 - it cleans up here
            protocol.connection_made(tls)
        except BaseException:
            transport.abort()
            raise
        return reader, asyncio.StreamWriter(tls, protocol, reader, loop)

    async def _talk(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        state = self._state
        assert state is not None  # noqa: S101 - opened above
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        fields = {"Host": f"{host}:{self.place.port}", "Content-Length": str(len(body)), **headers}
        self._writer.write(state.send(h11.Request(method=method, target=path, headers=list(fields.items()))) or b"")
        if body:
            self._writer.write(state.send(h11.Data(data=body)) or b"")
        self._writer.write(state.send(h11.EndOfMessage()) or b"")
        # No drain: the body is in memory anyway, and a refusal may come before the far side has read all of it.
        answer = await self._answer(state)
        if state.our_state is h11.DONE and state.their_state is h11.DONE:
            state.start_next_cycle()
        return answer

    async def _answer(self, state: h11.Connection) -> Answer:
        event = await self._next(state)
        while isinstance(event, h11.InformationalResponse):
            event = await self._next(state)
        if not isinstance(event, h11.Response):
            raise EOFError("it closed the connection instead of answering")  # noqa: TRY004 - not a caller's type
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in event.headers}
        body = bytearray()
        while not isinstance(piece := await self._next(state), h11.EndOfMessage):
            if not isinstance(piece, h11.Data):
                raise EOFError("it closed the connection in the middle of its answer")  # noqa: TRY004 - as above
            body += piece.data
            if len(body) > self._max_answer_bytes:
                raise ConnectionError(f"answers with more than {self._max_answer_bytes} bytes")
        return Answer(event.status_code, headers, bytes(body))

    async def _next(self, state: h11.Connection) -> object:
        event = await _next(state, self._reader)
        self._heard = self._heard or not isinstance(event, h11.ConnectionClosed)
        return event

    def _drop(self) -> None:
        if self._state is not None:
            self._state = None
            self._writer.transport.abort()


async def _next(state: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := state.next_event()) is h11.NEED_DATA:
        state.receive_data(await reader.read(READ_BYTES))
    return event


def check_proxy(url: str) -> str:
    """The URL if it is a proxy's; raises ValueError that shows a good example."""
    Proxy.parse(url)
    return url


def through_proxy(proxy: Proxy, place: Place, *, timeout_seconds: float) -> socket.socket:
    """A blocking connection to a place through a proxy, for whoever cannot use streams. Raises OSError, in time."""
    end = time.monotonic() + timeout_seconds
    connected = socket.create_connection((proxy.host, proxy.port), timeout_seconds)
    try:
        state = h11.Connection(h11.CLIENT)
        connected.sendall(_connect_request(state, proxy, place))
        while (event := state.next_event()) is h11.NEED_DATA:
            if time.monotonic() > end:
                raise TimeoutError(f"proxy {proxy.host}:{proxy.port} is silent")  # noqa: TRY301 - it cleans up here
            state.receive_data(connected.recv(1))  # not one byte of what comes behind the answer
        _check_connected(event, proxy, place)
    except h11.RemoteProtocolError as error:
        connected.close()
        raise ConnectionError(f"proxy {proxy.host}:{proxy.port}: {error}") from error
    except BaseException:
        connected.close()
        raise
    return connected


def _connect_request(state: h11.Connection, proxy: Proxy, place: Place) -> bytes:
    target = f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}"
    headers = {"Host": target} | ({"Proxy-Authorization": proxy.authorization} if proxy.authorization else {})
    request = h11.Request(method="CONNECT", target=target, headers=list(headers.items()))
    return (state.send(request) or b"") + (state.send(h11.EndOfMessage()) or b"")


def _check_connected(event: object, proxy: Proxy, place: Place) -> None:
    if not isinstance(event, h11.Response) or not 200 <= event.status_code < 300:
        status = getattr(event, "status_code", "nothing")
        raise ConnectionError(f"proxy {proxy.host}:{proxy.port} answered {status} to CONNECT {place}")


def in_words(error: BaseException) -> str:
    """A connection's error as an operator reads it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}): is this the right collector?"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in reason:
            return f"it refused our certificate or TLS ({reason}): `ndagent status` shows whether it has expired"
        return f"TLS failed ({reason})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, h11.RemoteProtocolError) and "ConnectionClosed" in str(error):
        return "it closed the connection instead of answering; it may have refused our certificate: `ndagent status`"
    return str(error) or type(error).__name__
