"""The admin routes of dead letters: `GET /v1/dlq`, `POST /v1/dlq/replay`, `/v1/dlq/stop`, `/v1/dlq/purge`.

A request is {"output": …, "wanted": {"reason", "where", "since", "before"}, …}. Answers 400 to what it cannot
understand, 404 to a name that is not there, 409 where something else is done with these letters, 507 where the disk
fails, each with {"error": …}. Refuses: deciding who may ask (admin.py did).
"""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from ndcollector.dead_letters.desk import Busy, Desk
from ndcollector.dead_letters.letters import Wanted

_Work = Callable[[dict[str, Any], int | None], Awaitable[dict[str, object]]]


def routes(desk: Desk) -> list[web.RouteDef]:
    """For the admin socket."""

    async def figures(_request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(desk.plain()), content_type="application/json")

    async def replay(wish: dict[str, Any], uid: int | None) -> dict[str, object]:
        return await desk.replay(_text(wish, "output"), wanted=_wanted(wish), to=wish.get("to"), uid=uid)

    async def stop(wish: dict[str, Any], uid: int | None) -> dict[str, object]:
        return await desk.stop(_text(wish, "output"), uid=uid)

    async def purge(wish: dict[str, Any], uid: int | None) -> dict[str, object]:
        end, inode = int(wish["end"]), int(wish["inode"])
        return await desk.purge(_text(wish, "output"), wanted=_wanted(wish), end=end, inode=inode, uid=uid)

    return [
        web.get("/v1/dlq", figures),
        web.post("/v1/dlq/replay", _answering(replay)),
        web.post("/v1/dlq/stop", _answering(stop)),
        web.post("/v1/dlq/purge", _answering(purge)),
    ]


def _answering(work: _Work) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        try:
            done = await work(orjson.loads(await request.read()), request.get("uid"))
        except LookupError as error:
            missing = isinstance(error, KeyError)  # a key of the request, not a name of ours
            return _refusal(f"{error.args[0]} is missing" if missing else str(error.args[0]), 400 if missing else 404)
        except (ValueError, TypeError, AttributeError) as error:
            return _refusal(str(error), 400)
        except Busy as error:
            return _refusal(str(error), 409)
        except OSError as error:
            return _refusal(f"{error.filename or 'dead letters'}: {error.strerror}; nothing was changed", 507)
        return web.Response(body=orjson.dumps(done), content_type="application/json")

    return answer


def _refusal(error: str, status: int) -> web.Response:
    return web.json_response({"error": error}, status=status)


def _text(wish: dict[str, Any], key: str) -> str:
    if not isinstance(wish[key], str):
        raise TypeError(f"{key} is no text")
    return str(wish[key])


def _wanted(wish: dict[str, Any]) -> Wanted:
    return Wanted.read(wish.get("wanted", {}))
