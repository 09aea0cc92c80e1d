"""An output over real TCP and the scripted server it talks to: the contract suite's own plug.

    client: SEND <bytes>\\n <NDJSON>      server: OK\\n | LATER <seconds>\\n | NEVER\\n | NEVER <index>,<index>…\\n

The server may also say nothing, or close the connection before or after it kept the events.
"""

import asyncio
import errno
from collections.abc import Callable

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.wire.record import EventBatch
from tests.events import sequences_in

Answer = str
"""A line as above, or "silence", "close" (nothing kept), "keep and close" (kept, but the client cannot know)."""


class ScriptedServer:
    """Keeps what it says OK to; `script` decides by the sequences of each request."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.script: Callable[[list[int]], Answer] = lambda sequences: "OK"
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while header := await reader.readline():
                sequences = sequences_in(await reader.readexactly(int(header.split()[1])))
                answer = self.script(sequences)
                if answer in ("OK", "keep and close"):
                    self.kept += sequences
                if answer == "silence":
                    await reader.read()
                if answer in ("silence", "close", "keep and close"):
                    return
                writer.write(answer.encode() + b"\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client gave up: its business
        finally:
            writer.close()


class TcpOutput:
    """One connection per send; what the contract asks of an output and nothing else."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    async def send(self, events: EventBatch) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        except OSError as error:
            raise Unavailable(errno.errorcode.get(error.errno or 0, str(error))) from error
        try:
            writer.write(b"SEND %d\n" % len(events.ndjson) + events.ndjson)
            verdict, _, detail = (await reader.readline()).decode().strip().partition(" ")
        except OSError as error:
            raise Unavailable(str(error)) from error
        finally:
            writer.close()
        if verdict == "LATER":
            raise Unavailable("busy", float(detail))
        if verdict == "NEVER":
            raise Rejected("refused", [int(index) for index in detail.split(",")] if detail else None)
        if verdict != "OK":
            raise Unavailable("connection closed without an answer")

    async def sync(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
