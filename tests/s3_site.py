"""A real S3 server (moto) in a process of its own, buckets in it, and a door before it that misbehaves when told to.

moto honours If-None-Match on PUT (412 with S3's own error document); it does not check x-amz-checksum-sha256, and it
checks signatures only once told to (`refuse_strangers`).
"""

import asyncio
import atexit
import itertools
import os
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from aiohttp import ClientSession, DummyCookieJar, web
from botocore.config import Config
from services.process import ServiceProcess, free_port

from ndcollector.outputs.s3_objects import zstd
from tests.events import sequences_in

_numbers = itertools.count()
KEYS = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "secret"}


class Server:
    """One that somebody has started."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, service: str = "s3", **keys: str) -> Any:
        """Of the official SDK: what a reader of the bucket would use."""
        config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
        return boto3.client(
            service, endpoint_url=self.url, region_name="us-east-1", config=config, **{**KEYS, **keys}
        )


class Moto(Server):
    """One of its own; what it holds is gone when it ends."""

    def __init__(self, directory: Path) -> None:
        super().__init__(free_port())
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        process = ServiceProcess("moto", command, directory=directory, environment={**os.environ, "PYTHONWARNINGS": ""})
        self._process = process.until_ready(self._answers, "answer")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=5):
                return True
        except OSError:
            return False

    def refuse_strangers(self) -> None:
        """From now on requests need keys that exist, and permission."""
        url, headers = f"{self.url}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        request = urllib.request.Request(url, data=b"0", headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=5):
            pass

    def stop(self) -> None:
        self._process.stop()


@cache
def moto() -> Moto:
    """The one that tests of a process share, each with a bucket of its own."""
    directory = tempfile.TemporaryDirectory()
    made = Moto(Path(directory.name))
    atexit.register(directory.cleanup)
    atexit.register(made.stop)
    return made


class Store:
    """A bucket of its own in a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.bucket = f"logs-{next(_numbers):06d}"
        self.client = server.client()
        self.client.create_bucket(Bucket=self.bucket)

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def lines(self, key: str) -> bytes:
        return bytes(zstd.decompress(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()))

    def metadata(self, key: str) -> dict[str, str]:
        return dict(self.client.head_object(Bucket=self.bucket, Key=key)["Metadata"])

    def sequences(self) -> list[int]:
        """Of all events in all objects, in order of the keys."""
        return [sequence for key in self.keys() for sequence in sequences_in(self.lines(key))]


Script = Callable[[web.Request], Awaitable[web.Response | str | None]]
"""What the door does with a request: answer itself, "swallow" it (done, and no answer ever), or None: pass it on."""


async def _pass(_request: web.Request) -> None:
    return None


def refusal(status: int, code: str, **headers: str) -> web.Response:
    """An error as S3 tells it."""
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code} it is</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml", headers=headers)


class Door:
    """An endpoint that passes requests on to a server, but for what `script` says."""

    def __init__(self, server: Moto) -> None:
        self.script: Script = _pass
        self.seen: list[str] = []
        self.port = 0
        self._server = server
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=256 << 20)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.method)
        said = await self.script(request)
        if isinstance(said, web.Response):
            return said
        answer = await self._passed_on(request)
        if said == "swallow":
            await asyncio.sleep(3600)
        return answer

    async def _passed_on(self, request: web.Request) -> web.Response:
        async with ClientSession(auto_decompress=False, cookie_jar=DummyCookieJar()) as session:
            headers = {name: value for name, value in request.headers.items() if name != "Expect"}
            url = self._server.url + request.raw_path
            body = await request.read()
            async with session.request(request.method, url, headers=headers, data=body) as answer:
                kept = {name: value for name, value in answer.headers.items() if name not in _OWN}
                text = await answer.read()
                if request.method == "HEAD":
                    kept["Content-Length"] = answer.headers.get("Content-Length", "0")
                return web.Response(status=answer.status, headers=kept, body=text)


_OWN = ("Connection", "Content-Length", "Date", "Server", "Transfer-Encoding")
