"""`GET /v1/tap` on the admin socket: a tap as a stream of NDJSON that lasts until its limit or its reader's end.

    ?input=NAME | ?output=NAME | ?stream=NAME | nothing (every stream)   &where=EXPRESSION  &share=0.1  &limit=100

Answers 400 to what it cannot understand, 404 to a name that is not there, 429 when `admin.max_taps` are open, each with
`{"error": …}`. Refuses: deciding who may ask (admin.py did), and being reached in any other way.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress

from aiohttp import web

from ndagent.wire.where import compile_where
from ndcollector.tap.hub import TooManyTaps
from ndcollector.tap.look import Point, Wish

log = logging.getLogger(__name__)

OpenTap = Callable[[Wish], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Raises LookupError that says which names there are, TooManyTaps."""

_POINTS: tuple[Point, ...] = ("input", "output", "stream")
_KNOWN = {*_POINTS, "where", "share", "limit"}


async def stream_tap(request: web.Request, open_tap: OpenTap) -> web.StreamResponse:
    """Serve one tap."""
    try:
        wish = read_wish(request.query)
        tap = open_tap(wish)
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)
    except LookupError as error:
        return web.json_response({"error": str(error.args[0])}, status=404)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    try:
        async with tap as pieces:
            await response.prepare(request)
            log.info("tap opened", extra=_described(wish, request))  # evidence is looked at: say by whom
            with suppress(ConnectionResetError):  # the reader has gone
                async for piece in pieces:
                    await response.write(piece)
    except TooManyTaps as error:
        return web.json_response({"error": str(error)}, status=429)
    log.info("tap closed", extra=_described(wish, request))
    return response


def read_wish(query: Mapping[str, str]) -> Wish:
    """What the query asks for; raises ValueError."""
    unknown = sorted(set(query) - _KNOWN)
    points = [point for point in _POINTS if point in query]
    if unknown or len(points) > 1:
        raise ValueError(f"unknown: {', '.join(unknown)}" if unknown else f"choose one of {', '.join(points)}")
    point: Point = points[0] if points else "stream"
    share = float(query.get("share", "1"))
    limit = int(query["limit"]) if "limit" in query else None
    if not 0 < share <= 1 or (limit is not None and limit < 1):
        raise ValueError("share must be more than 0 and at most 1, limit at least 1")
    where = compile_where(query["where"]) if "where" in query else None
    return Wish(point, query.get(point), where, share, limit)


def _described(wish: Wish, request: web.Request) -> dict[str, object]:
    place = f"{wish.point} {wish.name}" if wish.name else "all streams"
    return {"at": place, "where": str(wish.where or ""), "uid": request.get("uid")}
