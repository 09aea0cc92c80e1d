"""The contract's scripts in the words of Elasticsearch's bulk API and of Splunk's HEC."""

import orjson
from http_far_side import Act, FarSide, Received, answer, close, silence

from tests.contract.tcp_output import ScriptedServer
from tests.events import sequences_in

_CONFLICT = {"status": 409, "error": {"type": "version_conflict_engine_exception"}}
_REFUSED = {"status": 400, "error": {"type": "document_parsing_exception", "reason": "failed to parse field [x]"}}
_BUSY = {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "rejected execution"}}


class BulkServer(ScriptedServer):
    """NEVER with names: item by item, and too busy for the others; without names: the request is refused whole."""

    def __init__(self) -> None:
        super().__init__()
        self.far_side = FarSide(reply=self._reply)

    async def start(self) -> None:
        await self.far_side.start()

    async def stop(self) -> None:
        await self.far_side.stop()

    def _reply(self, request: Received) -> bytes | Act:
        sequences = self.sequences(request.plain)
        verdict, _, detail = self.script(sequences).partition(" ")
        if verdict in ("silence", "close"):
            return silence if verdict == "silence" else close
        if verdict == "LATER":
            return answer(503)
        named = [int(one) for one in detail.split(",")] if verdict == "NEVER" and detail else []
        reply = self.refuse(sequences, named) if verdict == "NEVER" else self.take(sequences)
        return close if verdict == "keep" else reply

    def sequences(self, body: bytes) -> list[int]:
        return sequences_in(b"\n".join(body.splitlines()[1::2]))

    def take(self, sequences: list[int]) -> bytes:
        """Those that are there already have a conflict: create is idempotent by id."""
        items = [{"create": _CONFLICT if sequence in self.kept else {"status": 201}} for sequence in sequences]
        self.kept += [sequence for sequence in sequences if sequence not in self.kept]
        return answer(200, orjson.dumps({"errors": {"create": _CONFLICT} in items, "items": items}))

    def refuse(self, sequences: list[int], named: list[int]) -> bytes:
        if named:
            items = [{"create": _REFUSED if index in named else _BUSY} for index in range(len(sequences))]
            return answer(200, orjson.dumps({"errors": True, "items": items}))
        error = {"type": "x_content_parse_exception", "reason": "unexpected end-of-input"}
        return answer(400, orjson.dumps({"error": error, "status": 400}))


class HecServer(BulkServer):
    """All of a request or nothing; of several names HEC tells the first."""

    def sequences(self, body: bytes) -> list[int]:
        return [orjson.loads(line)["event"]["event"]["sequence"] for line in body.splitlines()]

    def take(self, sequences: list[int]) -> bytes:
        self.kept += sequences
        return answer(200, b'{"text":"Success","code":0}')

    def refuse(self, sequences: list[int], named: list[int]) -> bytes:
        number = {"invalid-event-number": named[0]} if named else {}
        return answer(400, orjson.dumps({"text": "Invalid data format", "code": 6, **number}))
