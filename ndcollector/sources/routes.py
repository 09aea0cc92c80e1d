"""The admin routes of sources: `GET /v1/sources?pattern=…&quiet=1`, `POST /v1/sources/expect`, `/v1/sources/forget`.

A request is {"name": …, "channel": …} and for `expect` "seconds" (0 as learned, -1 never). Answers 400 to what it
cannot understand, 404 to a source that is not there, 409 where no place is left, each with {"error": …}.
Refuses: deciding who may ask (admin.py did).
"""

import asyncio
import math
from typing import Any

import orjson
from aiohttp import web

from ndcollector.sources.desk import SourcesDesk
from ndcollector.sources.table import NEVER, NoPlace


def routes(desk: SourcesDesk) -> list[web.RouteDef]:
    """For the admin socket."""

    async def rows(request: web.Request) -> web.Response:
        found = desk.rows(request.query.get("pattern"), only_quiet="quiet" in request.query)
        # In a thread: the rows of many thousand senders are megabytes.
        return web.Response(body=await asyncio.to_thread(orjson.dumps, found), content_type="application/json")

    async def expect(request: web.Request) -> web.Response:
        try:
            wish = _wish(await request.read())
            name, channel, seconds = _text(wish, "name"), _text(wish, "channel"), _seconds(wish)
            return _done(await desk.expect(name, channel, seconds, uid=request.get("uid")))
        except NoPlace as error:
            return _refusal(str(error), 409)
        except LookupError as error:
            return _missing(error)
        except (ValueError, TypeError) as error:
            return _refusal(str(error), 400)

    async def forget(request: web.Request) -> web.Response:
        try:
            wish = _wish(await request.read())
            channel = None if wish.get("channel") is None else _text(wish, "channel")
            return _done(await desk.forget(_text(wish, "name"), channel, uid=request.get("uid")))
        except LookupError as error:
            return _missing(error)
        except (ValueError, TypeError) as error:
            return _refusal(str(error), 400)

    return [
        web.get("/v1/sources", rows),
        web.post("/v1/sources/expect", expect),
        web.post("/v1/sources/forget", forget),
    ]


def _wish(body: bytes) -> dict[str, Any]:
    wish = orjson.loads(body)
    if not isinstance(wish, dict):
        raise TypeError("a request is an object")
    return wish


def _text(wish: dict[str, Any], key: str) -> str:
    if not isinstance(wish[key], str):
        raise TypeError(f"{key} is no text")
    return str(wish[key])


def _seconds(wish: dict[str, Any]) -> float:
    seconds = float(wish["seconds"])
    if not math.isfinite(seconds) or (seconds < 0 and seconds != NEVER):
        raise ValueError("seconds must be 0 (as learned), -1 (never) or more")
    return seconds


def _done(answer: dict[str, object]) -> web.Response:
    return web.Response(body=orjson.dumps(answer), content_type="application/json")


def _missing(error: LookupError) -> web.Response:
    of_ours = not isinstance(error, KeyError)  # else a key of the request
    return _refusal(str(error.args[0]) if of_ours else f"{error.args[0]} is missing", 404 if of_ours else 400)


def _refusal(error: str, status: int) -> web.Response:
    return web.json_response({"error": error}, status=status)
