"""An OTLP/HTTP receiver for logs that reads requests with OpenTelemetry's own protobuf code, and answers as scripted.

Answers, by the sequences in a request:
    "OK"                       success
    "NEVER" (or "NEVER 3,5")   400 with a google.rpc.Status (the protocol has no way to name the guilty)
    "LATER" (or "LATER 3")     503
    "PAUSE <seconds>"          503 with Retry-After
    "PARTIAL <count>"          200, so many dropped
    "TOO LARGE"                413
    "silence", "close", "keep and close"
"""

import asyncio
import gzip
from collections.abc import Callable, Iterator

from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

PROTOBUF = "application/x-protobuf"
STATUS = b"\x08\x03\x12\x0bnot for me!"  # google.rpc.Status: code 3, message "not for me!"


def records(request: ExportLogsServiceRequest) -> Iterator[LogRecord]:
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            yield from scope.log_records


def attributes(record: LogRecord) -> dict[str, object]:
    """Scalar ones by name."""
    kinds = {pair.key: pair.value.WhichOneof("value") for pair in record.attributes}
    return {pair.key: getattr(pair.value, kinds[pair.key] or "string_value") for pair in record.attributes}


def sequences(request: ExportLogsServiceRequest) -> list[int]:
    return [int(str(attributes(record)["event.sequence"])) for record in records(request)]


class OtlpReceiver:
    """Keeps the sequences, and the requests, that it says OK to."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.requests: list[ExportLogsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.script: Callable[[list[int]], str] = lambda sequences: "OK"
        self.answer: Callable[[], web.Response] | None = None
        """Instead of success."""
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/logs", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()  # aiohttp undoes the gzip
        assert request.content_type == PROTOBUF
        found = ExportLogsServiceRequest.FromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        numbers = sequences(found)
        verdict, _, detail = self.script(numbers).partition(" ")
        if verdict in ("OK", "keep"):
            self.kept += numbers
            self.requests.append(found)
        if verdict == "silence":
            await asyncio.sleep(3600)
        if verdict in ("close", "keep"):
            assert request.transport is not None
            request.transport.abort()
        return self._say(verdict, detail)

    def _say(self, verdict: str, detail: str) -> web.Response:
        if verdict == "OK" and self.answer is not None:
            return self.answer()
        if verdict in ("LATER", "PAUSE"):
            wish = {"Retry-After": detail} if verdict == "PAUSE" else {}
            return web.Response(status=503, headers=wish, content_type=PROTOBUF)
        if verdict == "NEVER":
            return web.Response(status=400, body=STATUS, content_type=PROTOBUF)
        if verdict == "TOO":
            return web.Response(status=413)
        said = ExportLogsServiceResponse()
        if verdict == "PARTIAL":
            said.partial_success.rejected_log_records = int(detail)
            said.partial_success.error_message = "too old"
        return web.Response(body=said.SerializeToString(), content_type=PROTOBUF)
