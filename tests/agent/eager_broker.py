"""A broker that begins with all that a session holds, whatever Receive Maximum says, and then answers SUBSCRIBE."""

import asyncio
from collections.abc import Iterator

CONNECT, PUBACK, SUBSCRIBE, PINGREQ = 0x10, 0x40, 0x82, 0xC0
HELD = 200


class EagerBroker:
    """MQTT 5 as far as the input speaks it; messages are sent in one go, right behind CONNACK."""

    def __init__(self) -> None:
        self.acknowledged: set[int] = set()
        self.subscriptions = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                kind, body = await packet(reader)
                for answer in self.answers(kind, body):
                    writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def answers(self, kind: int, body: bytes) -> Iterator[bytes]:
        if kind == CONNECT:
            yield bytes([0x20, 3, 1, 0, 0])  # the session is there
            for number in range(1, HELD + 1):
                if number not in self.acknowledged:
                    publish = bytes([0, 1]) + b"x" + number.to_bytes(2) + bytes([0]) + b"held"
                    yield bytes([0x32, len(publish)]) + publish
        elif kind == PUBACK:
            self.acknowledged.add(int.from_bytes(body[:2]))
        elif kind == SUBSCRIBE:
            self.subscriptions += 1
            yield bytes([0x90, 6]) + body[:2] + bytes([0, 1, 1, 1])
        elif kind == PINGREQ:
            yield bytes([0xD0, 0])


async def packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Type and flags, and what stands behind the length."""
    kind = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return kind, await reader.readexactly(length)
