"""Reading what a far side answers, as far as we are willing to."""

from aiohttp import StreamReader


class AnswerTooLargeError(Exception):
    """There is more to it than was to be read."""


async def read_at_most(content: StreamReader, most_bytes: int) -> bytes:
    """The whole body, decompressed; raises AnswerTooLargeError, having held little more than `most_bytes`."""
    pieces: list[bytes] = []
    size = 0
    async for piece in content.iter_any():
        size += len(piece)
        if size > most_bytes:
            raise AnswerTooLargeError
        pieces.append(piece)
    return b"".join(pieces)
