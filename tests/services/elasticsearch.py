"""Elasticsearch's bulk and template APIs as published (8.x), in memory; a peer with faults that a test turns on.

    async with Elasticsearch() as server:      # server.url
        server.documents["logs-nd.alerts-default"]["spool-1"]       # what it holds, by _id
        server.busy = lambda _id: …            # 429 es_rejected_execution_exception for these
        server.blocked = {"logs-…"}            # 403 cluster_block_exception
        server.auto_create = False             # 404 index_not_found_exception
        server.max_content = 100_000           # 413, HTML or nothing in it, as its HTTP layer does
        server.lose_answers = 1                # does the work, then cuts the connection
        server.api_key = "…"                   # 401 security_exception without `Authorization: ApiKey …`
        server.answer = (502, b"…")            # what a proxy says
        server.answer_question = …             # whether there is a template: `questions` counts them

Shapes of answers are those that a real OpenSearch 2.19 and Elasticsearch 8's documentation show; tests/outputs run what
matters against both. Kept: create conflicts (409), data streams that take only `create` and want `@timestamp`, types of
fields that the templates name (long, date, ip), an id's 512 bytes, filter_path, gzip, the closing line feed.
Not kept: search, dynamic mapping, aliases, versions, ingest pipelines (any named one but `known_pipelines` is missing).
"""

import fnmatch
import gzip
import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Self

import orjson
from aiohttp import web

_TYPES = ("application/json", "application/x-ndjson")


class Refusal(Exception):
    """An error for one item or for the request."""

    def __init__(self, status: int, kind: str, reason: str, cause: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.error: dict[str, Any] = {"type": kind, "reason": reason}
        if cause is not None:
            self.error["caused_by"] = {"type": "illegal_argument_exception", "reason": cause}


class Elasticsearch:
    """See the module."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = {}
        self.streams: set[str] = set()
        self.requests: list[tuple[str, int]] = []  # of bulk: path with query, events
        self.busy: Callable[[str], bool] = lambda _id: False
        self.blocked: set[str] = set()
        self.auto_create = True
        self.max_content = 100 * 2**20
        self.lose_answers = 0
        self.api_key: str | None = None
        self.answer: tuple[int, bytes] | None = None
        self.known_pipelines: set[str] = set()
        self.components: dict[str, Any] = {}
        self.templates: dict[str, Any] = {}
        self.may_manage = True
        self.questions = 0
        self.answer_question: Callable[[], Awaitable[web.Response]] | None = None
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens; the same after stop and start."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=2**30, middlewares=[self._guard])
        app.router.add_post("/_bulk", self._bulk)
        app.router.add_post("/{target}/_bulk", self._bulk)
        app.router.add_get("/", self._about)
        app.router.add_post("/_index_template/_simulate_index/{name}", self._simulate)
        for kind in ("component_template", "index_template"):
            app.router.add_get(f"/_{kind}/{{name}}", self._get_template)
            app.router.add_put(f"/_{kind}/{{name}}", self._put_template)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close everything; what it holds stays."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    # The HTTP layer.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.questions += "_simulate_index" in request.path
        if self.answer is not None:
            return web.Response(status=self.answer[0], body=self.answer[1])
        if self.api_key is not None and request.headers.get("Authorization") != f"ApiKey {self.api_key}":
            reason = f"unable to authenticate with provided credentials for REST request [{request.path}]"
            return _error(Refusal(401, "security_exception", reason))
        try:
            return await handler(request)
        except Refusal as refusal:
            return _error(refusal)

    async def _bulk(self, request: web.Request) -> web.StreamResponse:
        if request.content_type not in _TYPES:
            kind = request.headers.get("Content-Type")
            text = f"Content-Type header [{kind}] is not supported"
            return web.json_response({"error": text, "status": 406}, status=406)
        body = await request.read()
        if len(body) > self.max_content:
            return web.Response(status=413)
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        items = self._work(body, request)
        self.requests.append((request.path_qs, len(items)))
        if self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        errors = any("error" in result for item in items for result in item.values())
        answer = {"took": 7, "errors": errors, "items": items}
        if "filter_path" in request.query:
            answer = {"errors": errors, "items": [_filtered(item) for item in items]}
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    def _work(self, body: bytes, request: web.Request) -> list[dict[str, Any]]:
        if not body.endswith(b"\n"):
            reason = "The bulk request must be terminated by a newline [\\n]"
            raise Refusal(400, "illegal_argument_exception", reason)
        pipeline = request.query.get("pipeline")
        if pipeline is not None and pipeline not in self.known_pipelines:
            raise Refusal(400, "illegal_argument_exception", f"pipeline with id [{pipeline}] does not exist")
        rows = body.split(b"\n")[:-1]
        actions = []
        for action, source in zip(rows[::2], rows[1::2], strict=True):
            try:
                ((op, about),) = orjson.loads(action).items()
            except (orjson.JSONDecodeError, ValueError) as error:
                raise Refusal(400, "x_content_parse_exception", f"Malformed action/metadata line: {error}") from None
            actions.append((op, about.get("_index", request.match_info.get("target")), about.get("_id"), source))
        too_long = [(n, _id) for n, (_, _, _id, _) in enumerate(actions, 1) if _id and len(_id.encode()) > 512]
        if too_long:
            faults = "".join(
                f"{n}: id [{_id}] is too long, must be no longer than 512 bytes but was: {len(_id.encode())};"
                for n, _id in too_long
            )
            raise Refusal(400, "action_request_validation_exception", f"Validation Failed: {faults}")
        return [{op: self._one(op, target, _id or secrets.token_hex(10), line)} for op, target, _id, line in actions]

    # One document.

    def _one(self, op: str, target: str, _id: str, source: bytes) -> dict[str, Any]:
        about = {"_index": f".ds-{target}-2026.11.25-000001" if target in self.streams else target, "_id": _id}
        try:
            self._create(op, target, _id, source)
        except Refusal as refusal:
            return {**about, "status": refusal.status, "error": refusal.error}
        shards = {"total": 2, "successful": 1, "failed": 0}
        place = {"_shards": shards, "_seq_no": 0, "_primary_term": 1}
        return {**about, "_version": 1, "result": "created", **place, "status": 201}

    def _create(self, op: str, target: str, _id: str, source: bytes) -> None:
        if re.search(r"[A-Z\\/*?\"<>| ,#]", target) or target.startswith(("-", "_", "+")):
            raise Refusal(400, "invalid_index_name_exception", f"Invalid index name [{target}]")
        self._find_or_make(target)
        if target in self.streams and op != "create":
            reason = "only write ops with an op_type of create are allowed in data streams"
            raise Refusal(400, "illegal_argument_exception", reason)
        if target in self.blocked:
            reason = f"index [{target}] blocked by: [FORBIDDEN/8/index write (api)];"
            raise Refusal(403, "cluster_block_exception", reason)
        if self.busy(_id):
            reason = "rejected execution of coordinating operation [coordinating_and_primary_bytes=0, …]"
            raise Refusal(429, "es_rejected_execution_exception", reason)
        held = self.documents[target]
        document = self._parsed(target, _id, source)
        if op == "create" and _id in held:
            reason = f"[{_id}]: version conflict, document already exists (current version [1])"
            raise Refusal(409, "version_conflict_engine_exception", reason)
        held[_id] = document

    def _find_or_make(self, target: str) -> None:
        if target in self.documents:
            return
        if not self.auto_create:
            raise Refusal(404, "index_not_found_exception", f"no such index [{target}]")
        self.documents[target] = {}
        template = self._template_for(target)
        if template is not None and "data_stream" in template:
            self.streams.add(target)

    def _parsed(self, target: str, _id: str, source: bytes) -> dict[str, Any]:
        try:
            document = orjson.loads(source)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise Refusal(400, "document_parsing_exception", "[1:1] failed to parse", "not an object")
        if target in self.streams and not isinstance(document.get("@timestamp"), str):
            cause = "data stream timestamp field [@timestamp] is missing"
            raise Refusal(400, "document_parsing_exception", "[1:2] failed to parse", cause)
        _check_types(document, self._mappings(target), "", _id)
        return document

    # Templates.

    def _template_for(self, target: str) -> dict[str, Any] | None:
        matching = [
            one for one in self.templates.values() if any(fnmatch.fnmatch(target, p) for p in one["index_patterns"])
        ]
        return max(matching, key=lambda one: one.get("priority", 0), default=None)

    def _mappings(self, target: str) -> dict[str, Any]:
        template = self._template_for(target) or {}
        parts = [self.components[name] for name in template.get("composed_of", ())]
        found: dict[str, Any] = {}
        for part in (*parts, template):
            found |= part.get("template", {}).get("mappings", {}).get("properties", {})
        return found

    async def _about(self, _request: web.Request) -> web.Response:
        return web.json_response({"name": "node", "cluster_name": "test", "version": {"number": "8.17.0"}})

    async def _simulate(self, request: web.Request) -> web.Response:
        if self.answer_question is not None:
            return await self.answer_question()
        if not self.may_manage:
            raise Refusal(403, "security_exception", "action [indices:admin/index_template/simulate] is unauthorized")
        found = self._template_for(request.match_info["name"])
        if found is None:
            return web.json_response({})
        return web.json_response({"template": found.get("template", {"mappings": {}}), "overlapping": []})

    async def _get_template(self, request: web.Request) -> web.Response:
        kind, name = request.path.split("/")[1][1:], request.match_info["name"]
        held = self.components if kind == "component_template" else self.templates
        if name not in held:
            raise Refusal(404, "resource_not_found_exception", f"{kind} matching [{name}] not found")
        return web.json_response({f"{kind}s": [{"name": name, kind: held[name]}]})

    async def _put_template(self, request: web.Request) -> web.Response:
        if not self.may_manage:
            raise Refusal(403, "security_exception", "action [indices:admin/index_template/put] is unauthorized")
        kind, name = request.path.split("/")[1][1:], request.match_info["name"]
        held = self.components if kind == "component_template" else self.templates
        held[name] = await request.json()
        return web.json_response({"acknowledged": True})


def _filtered(item: dict[str, Any]) -> dict[str, Any]:
    """By filter_path=errors,items.*.status,items.*.error."""
    return {op: {k: v for k, v in result.items() if k in ("status", "error")} for op, result in item.items()}


def _check_types(document: dict[str, Any], properties: dict[str, Any], path: str, _id: str) -> None:
    for name, value in document.items():
        mapped = properties.get(name)
        if mapped is None:
            continue
        whole = f"{path}.{name}" if path else name
        if "properties" in mapped:
            if not isinstance(value, dict):
                tried = f"[1:1] object mapping for [{whole}] tried to parse field [{name}] as object"
                reason = f"{tried}, but found a concrete value"
                raise Refusal(400, "document_parsing_exception", reason)
            _check_types(value, mapped["properties"], whole, _id)
        elif not all(_fits(mapped["type"], one) for one in (value if isinstance(value, list) else [value])):
            reason = f"[1:57] failed to parse field [{whole}] of type [{mapped['type']}] in document with id '{_id}'."
            preview = f" Preview of field's value: '{value}'"
            raise Refusal(400, "document_parsing_exception", reason + preview, f'For input string: "{value}"')


def _fits(kind: str, value: Any) -> bool:
    try:
        if kind == "long":
            int(value)
        elif kind == "ip":
            ipaddress.ip_address(value)
        elif kind == "date":
            datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _error(refusal: Refusal) -> web.Response:
    body = {"error": {"root_cause": [refusal.error], **refusal.error}, "status": refusal.status}
    return web.json_response(body, status=refusal.status)
