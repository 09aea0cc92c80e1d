"""One RELP session on a connection: open it, hand messages over with a window of unanswered ones, close it.

Promises: each message is answered for by its own transaction; at most `window` are unanswered, whatever the batch has;
an answer that is neither 200 nor 500, one to nothing, or bytes that are no RELP end the session, and what was not
answered is not delivered.
Refuses: sending again, and knowing which events the messages are (relp.py).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from ndagent.wire.relp import OFFERS, Frame, FrameReader, RelpError, Response, Window, check_offers, frame
from ndcollector.outputs.syslog_connection import FINISH_SECONDS, WRITE_BYTES, Connection, ConnectionLost
from ndcollector.outputs.syslog_endpoint import Agree, Received

OK, NO = 200, 500


class Session:
    """Made by `open`."""

    def __init__(self) -> None:
        self.connection: Connection = None  # type: ignore[assignment]  # set by open(): each needs the other
        self._reader = FrameReader()
        self._window = Window()
        self._is_open = False
        self._moved = asyncio.Event()
        self._answer: Callable[[int, Response], None] = lambda _index, _response: None

    @classmethod
    async def open(cls, connect: Callable[[Received, Agree], Awaitable[Connection]]) -> "Session":
        """Connect, and agree with the server. Raises whatever `connect` does."""
        session = cls()
        await connect(session._received, session._agree)
        return session

    async def _agree(self, connection: Connection) -> None:
        """Raises ConnectionLost; then another server may be asked, with nothing left of this one."""
        self.connection, self._reader, self._window = connection, FrameReader(), Window()
        await connection.write(frame(self._window.number(), b"open", OFFERS))
        while not self._is_open:
            await self._wait()

    async def deliver(self, messages: Sequence[bytes], *, window: int, answer: Callable[[int, Response], None]) -> None:
        """Return when each message was answered; `answer` gets its position and 200 or 500. Raises ConnectionLost."""
        self._answer = answer
        at = 0
        while at < len(messages) or len(self._window):
            at = await self._write_some(messages, at, window)
            if len(self._window) and (at == len(messages) or len(self._window) >= window):
                await self._wait()

    async def close(self) -> None:
        """Tell the server, and wait a moment for its answer; never raises. A cancel leaves nothing open."""
        try:
            with suppress(ConnectionLost, TimeoutError):
                async with asyncio.timeout(FINISH_SECONDS):
                    await self.connection.write(frame(self._window.number(), b"close"))
                    while len(self._window):
                        await self._wait()
            await self.connection.finish()
        finally:
            self.connection.abort("closed")

    async def _write_some(self, messages: Sequence[bytes], at: int, window: int) -> int:
        """As many as the window has room for, a piece of them; where to go on."""
        piece: list[bytes] = []
        size = 0
        while at < len(messages) and len(self._window) < window and size < WRITE_BYTES:
            piece.append(frame(self._window.number(at), b"syslog", messages[at]))
            size += len(piece[-1])
            at += 1
        if piece:
            await self.connection.write(b"".join(piece))
        return at

    async def _wait(self) -> None:
        """Until the server said something; raises ConnectionLost when it is gone."""
        if self.connection.lost is None:
            await self._moved.wait()
            self._moved.clear()
        if self.connection.lost is not None:
            raise ConnectionLost(self.connection.lost)

    def _received(self, connection: Connection, data: bytes) -> None:
        """Also told, by no data, that no more will come. A server that speaks before it is asked is none of RELP."""
        self._moved.set()
        try:
            for one in self._reader.feed(data) if data else ():
                self._take(one)
        except RelpError as error:
            connection.abort(str(error))

    def _take(self, one: Frame) -> None:
        if one.command == "serverclose":
            raise RelpError("the server closes the session")
        if one.command != "rsp":
            raise RelpError(f"the server sent the command {one.command!r}")
        index = self._window.answered(one.transaction)
        if not self._is_open:
            check_offers(one.data)
            self._is_open = True
            return
        if index >= 0 and not one.data:
            raise RelpError("a response without a status")
        response = Response.of(one.data)
        if response.status not in (OK, NO):
            raise RelpError(f"the server answered {response.status} {response.text}")
        if index >= 0:
            self._answer(index, response)
