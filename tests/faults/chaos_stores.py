"""Elasticsearch and Splunk that answer only for what they have on disk; processes of their own, to be killed.

    chaos_stores.py elasticsearch|splunk PORT FILE

They are the tests' usual counterparts (services/elasticsearch.py, services/splunk_hec.py), whose state is in memory,
with a journal below: FILE has a line for all that must last. A start of Elasticsearch reads it again.
Promises: Elasticsearch answers for an event, and Splunk acknowledges one, after it is in FILE and synced. The rest is
forgotten by a kill: Splunk's channels, numbers and queue among it.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what all tests share
import orjson
from aiohttp import web
from chaos_receiver import Store
from services.elasticsearch import Elasticsearch
from services.splunk_hec import SplunkHec

INDEX_SECONDS = 0.3
"""So long an event waits in Splunk's queue, which a kill empties."""


def _line(entry: object) -> bytes:
    return orjson.dumps(entry) + b"\n"


class DurableElasticsearch(Elasticsearch):
    """Documents and templates survive."""

    def __init__(self, port: int, file: Path) -> None:
        super().__init__()
        self._port = port
        self._store = Store(str(file))
        self._unsynced: list[bytes] = []
        for entry in map(orjson.loads, file.read_bytes().splitlines()):
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


async def _serve(server: Elasticsearch | SplunkHec) -> None:
    await server.start()
    await asyncio.Event().wait()


def main() -> None:
    """See the module."""
    kind, port, file = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    asyncio.run(_serve({"elasticsearch": DurableElasticsearch, "splunk": DurableSplunk}[kind](port, file)))


if __name__ == "__main__":
    main()
