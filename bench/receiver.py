"""A receiver for the outputs that speak HTTP: takes requests as fast as asyncio can, counts the events in them.

Promises: HTTP/1.1 with Content-Length or chunked bodies, gzip or zstd, kept connections; an event is a line of the
body, or an element of a JSON array (`"event":{"id"` occurs once in each); every request is answered with what its
output wants to hear. GET /report gives what was counted so far as JSON. `--silent` takes all and never answers.
Refuses: TLS (another process would have to pay for it), keeping anything.

    python bench/receiver.py --port 8088 [--silent]
"""

import argparse
import asyncio
import json
import re
import time
import zlib
from collections.abc import Callable, Sequence

import uvloop

try:
    from isal import isal_zlib as gzip_library
except ImportError:
    gzip_library = zlib
from backports import zstd

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_CODING = re.compile(rb"content-encoding: *(\w+)", re.IGNORECASE)
_EXPECTS = re.compile(rb"expect: *100-continue", re.IGNORECASE)  # libcurl waits a second for the answer
_CHUNKED = re.compile(rb"transfer-encoding: *chunked", re.IGNORECASE)
_EVENT = b'"event":{"id"'


def count_lines(body: bytes) -> int:
    """NDJSON, or whatever has an event a line."""
    return body.count(b"\n") or body.count(_EVENT)


def count_actions(body: bytes) -> int:
    """Elasticsearch's bulk: an event has an action before it, whatever empty lines there are."""
    return body.count(b'{"index":') + body.count(b'{"create":')


def created(events: int) -> bytes:
    """Elasticsearch's word for each event."""
    return b'{"errors":false,"items":[' + b",".join([b'{"create":{"status":201}}'] * events) + b"]}"


WHAT_IT_ANSWERS: dict[bytes, tuple[Callable[[bytes], int], Callable[[int], bytes]]] = {
    b"/_bulk": (count_actions, created),
    b"": (count_lines, lambda _events: b'{"text":"Success","code":0}'),
}
"""By what the path has in it: how its events are counted, and the answer. The first that fits."""


class Counts:
    """Over all connections."""

    def __init__(self) -> None:
        self.events = self.requests = self.body_bytes = 0
        self.first = self.last = 0.0

    def take(self, path: bytes, coding: bytes, body: bytes) -> bytes:
        """Count a request; returns the answer's body."""
        self.first = self.first or time.time()
        count, answer = next(found for part, found in WHAT_IT_ANSWERS.items() if part in path)
        self.requests += 1
        self.body_bytes += len(body)
        if coding == b"gzip":
            body = gzip_library.decompress(body, 31)
        elif coding == b"zstd":
            body = zstd.decompress(body)
        events = count(body)
        self.events += events
        self.last = time.time()
        return answer(events)

    def report(self) -> bytes:
        """As JSON."""
        return json.dumps(vars(self)).encode()


class Receiver(asyncio.Protocol):
    """One connection."""

    def __init__(self, counts: Counts, *, silent: bool) -> None:
        self._counts = counts
        self._silent = silent
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 0  # bytes without which there is nothing to do

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._silent:
            return
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        buffer = b"".join(self._pieces)
        while buffer:
            end = self._request(buffer)
            if not end:
                break
            buffer = buffer[end:]
        self._pieces, self._have = ([buffer], len(buffer)) if buffer else ([], 0)

    def _request(self, buffer: bytes) -> int:
        """Answer the request at the start of the buffer; 0 if it is not whole."""
        head_end = buffer.find(b"\r\n\r\n") + 4
        if head_end < 4:
            return 0
        head = buffer[:head_end]
        found = _body(head, buffer, head_end)
        if found is None:
            length = _LENGTH.search(head)
            self._need = head_end + int(length[1]) if length else self._have + 1
            if _EXPECTS.search(head) and len(buffer) == head_end:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # type: ignore[attr-defined]
            return 0
        body, end = found
        self._need = 0
        path = head.split(b" ", 2)[1]
        coding = _CODING.search(head)
        if path == b"/report":
            answer = self._counts.report()
        else:
            answer = self._counts.take(path, coding[1] if coding else b"", body)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
        self._transport.write(head + answer)  # type: ignore[attr-defined]  # a TCP transport
        return end


def _body(head: bytes, buffer: bytes, start: int) -> tuple[bytes, int] | None:
    """The body and where it ends; None if it is not whole."""
    if not _CHUNKED.search(head):
        length = _LENGTH.search(head)
        end = start + (int(length[1]) if length else 0)
        return (buffer[start:end], end) if len(buffer) >= end else None
    pieces = []
    while True:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            return None
        size = int(buffer[start:line_end].split(b";")[0], 16)
        start = line_end + 2 + size + 2
        if len(buffer) < start:
            return None
        if not size:
            return b"".join(pieces), start
        pieces.append(buffer[line_end + 2 : start - 2])


async def serve(port: int, *, silent: bool) -> None:
    """Until killed."""
    counts = Counts()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Receiver(counts, silent=silent), "127.0.0.1", port)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--silent", action="store_true")
    arguments = parser.parse_args(argv)
    uvloop.run(serve(arguments.port, silent=arguments.silent))


if __name__ == "__main__":
    main()
