"""Elasticsearch, Splunk and S3 that answer only for what they have on disk; processes of their own, to be killed.

    chaos_stores.py elasticsearch|splunk|s3 PORT FILE

They are the tests' usual counterparts (services/elasticsearch.py, services/splunk_hec.py, moto), whose state is in
memory, with a journal below: FILE has a line for all that changed, synced before the answer. A start reads it again.
Promises: Elasticsearch answers for an event, and Splunk acknowledges one, after it is in FILE; S3 answers for an object
and shows it after that. What was not, a kill forgets: Splunk's channels, numbers and queue among it.
"""

import asyncio
import base64
import io
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what all tests share
import orjson
from aiohttp import web
from chaos_receiver import Store
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from services.elasticsearch import Elasticsearch
from services.splunk_hec import SplunkHec
from werkzeug.serving import run_simple
from werkzeug.test import run_wsgi_app

INDEX_SECONDS = 0.3
"""So long an event waits in Splunk's queue, which a kill empties."""


def entries(file: Path) -> list[Any]:
    """All whole lines of a journal."""
    if not file.exists():
        return []
    return [orjson.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _line(entry: object) -> bytes:
    return orjson.dumps(entry) + b"\n"


class DurableElasticsearch(Elasticsearch):
    """Documents and templates survive."""

    def __init__(self, port: int, file: Path) -> None:
        super().__init__()
        self._port = port
        self._store = Store(str(file))
        self._unsynced: list[bytes] = []
        for entry in entries(file):
            if "kind" in entry:
                held = self.components if entry["kind"] == "component_template" else self.templates
                held[entry["name"]] = entry["body"]
            else:
                self._find_or_make(entry["target"])
                self.documents[entry["target"]][entry["id"]] = entry["source"]

    def _work(self, body: bytes, request: web.Request) -> list[dict[str, Any]]:
        try:
            return super()._work(body, request)
        finally:
            self._sync()

    def _create(self, op: str, target: str, _id: str, source: bytes) -> None:
        super()._create(op, target, _id, source)
        self._unsynced.append(_line({"target": target, "id": _id, "source": self.documents[target][_id]}))

    async def _put_template(self, request: web.Request) -> web.Response:
        answer = await super()._put_template(request)
        kind, name = request.path.split("/")[1][1:], request.match_info["name"]
        self._unsynced.append(_line({"kind": kind, "name": name, "body": await request.json()}))
        self._sync()
        return answer

    def _sync(self) -> None:
        if self._unsynced:
            self._store.keep(b"".join(self._unsynced))
            self._unsynced.clear()


class DurableSplunk(SplunkHec):
    """Indexed events survive; FILE has them without their envelopes."""

    def __init__(self, port: int, file: Path) -> None:
        super().__init__()
        self._port = port
        self._store = Store(str(file))
        self.settings.ack = True

    async def start(self) -> None:
        """Listen, and index now and then."""
        await super().start()
        self._indexer = asyncio.create_task(self._index_forever())

    async def _index_forever(self) -> None:
        while True:
            await asyncio.sleep(INDEX_SECONDS)
            if lines := [_line(event["event"]) for _, _, events in self._waiting for event in events]:
                self._store.keep(b"".join(lines))
            self.index()


class DurableS3:
    """moto behind a journal of the requests that changed it; one at a time, so that none sees what is not synced."""

    def __init__(self, file: Path) -> None:
        self._moto: Any = DomainDispatcherApplication(create_backend_app)
        self._turn = threading.Lock()
        self._store = Store(str(file))
        for entry in entries(file):
            self._ask(entry["environ"], base64.b64decode(entry["body"]))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        if len(body) < size:
            raise ConnectionError("the request did not come whole")
        kept = {name: value for name, value in environ.items() if isinstance(value, str)}
        with self._turn:
            content, status, headers = self._ask(kept, body)
            if environ["REQUEST_METHOD"] != "GET" and environ["REQUEST_METHOD"] != "HEAD" and status.startswith("20"):
                self._store.keep(_line({"environ": kept, "body": base64.b64encode(body).decode()}))
        start_response(status, list(headers))
        return content

    def _ask(self, environ: dict[str, str], body: bytes) -> Any:
        streams = {"wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr, "wsgi.version": (1, 0)}
        return run_wsgi_app(self._moto, {**environ, **streams, "wsgi.input_terminated": True}, buffered=True)


async def _serve(server: Elasticsearch | SplunkHec) -> None:
    await server.start()
    await asyncio.Event().wait()


def main() -> None:
    """See the module."""
    kind, port, file = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    with suppress(KeyboardInterrupt):
        if kind == "s3":
            run_simple("127.0.0.1", port, DurableS3(file), threaded=True, request_handler=MotoRequestHandler)
        else:
            asyncio.run(_serve({"elasticsearch": DurableElasticsearch, "splunk": DurableSplunk}[kind](port, file)))


if __name__ == "__main__":
    main()
