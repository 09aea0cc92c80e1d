"""Index templates for our events, made from ndcollector/schema.py; and seeing to it that a cluster has one.

Promises:
  * every field of the schema has the type that ECS gives it, the message is text; other text is a keyword, so that none
    is refused because an earlier one looked like a number or a date;
  * names that senders choose (structured data, journal fields, audit records) go into one field each (`flattened`, in
    OpenSearch `flat_object`): a sender cannot use up the index's field limit;
  * `check` says once per target that there is no template, and never stops a send: it asks once events went in, beside
    the sends, and at most MOST_QUESTIONS times where no answer comes;
  * `manage` installs ours before the first event, only where it is missing or older, and never touches another.
Refuses: lifecycle policies and replicas: they are the cluster's owner's.
"""

import asyncio
import logging
from collections import Counter
from typing import Any, Literal

import orjson

from ndagent.core.interfaces import Unavailable
from ndcollector.schema import STREAMS, Schema, schema
from ndcollector.traffic.request import Answer, Exchange, Request, judge

Flavor = Literal["elasticsearch", "opensearch"]

VERSION = 2
"""Of what we install; a cluster with an older one gets the newer."""

MOST_QUESTIONS = 3

COMPONENT = "ndcollector-ecs"
PRIORITY = 250
"""Above Elasticsearch's own templates for logs-*-* (100)."""

_ENDS = ("source", "destination", "client", "server")
_IPS = frozenset(
    {*(f"{end}{name}" for end in _ENDS for name in (".ip", ".nat.ip")), "device.ip", "log.source.ip", "related.ip"}
)
_LONG_TEXTS = frozenset({"event.original", "event.original_base64"})
_TEXTS = frozenset({"message", "error.message"})
_KEYWORD = {"type": "keyword", "ignore_above": 1024}
_FLAT: dict[str, dict[str, Any]] = {
    "elasticsearch": {"type": "flattened", "ignore_above": 1024},  # more than 32 KB of text would refuse the event
    "opensearch": {"type": "flat_object"},
}


def component_template(flavor: Flavor = "elasticsearch") -> dict[str, Any]:
    """Mappings of all streams' fields; the body of PUT /_component_template/ndcollector-ecs."""
    properties: dict[str, Any] = {}
    for stream in STREAMS:
        _merge(properties, _properties(schema(stream), "", flavor))
    strings = {"strings": {"match_mapping_type": "string", "mapping": _KEYWORD}}
    mappings = {"date_detection": False, "dynamic_templates": [strings], "properties": properties}
    return {"template": {"mappings": mappings}, "version": VERSION, "_meta": {"managed_by": "ndcollector"}}


def index_template(pattern: str, *, is_data_stream: bool) -> dict[str, Any]:
    """For the targets that match; the body of PUT /_index_template/NAME."""
    found: dict[str, Any] = {
        "index_patterns": [pattern],
        "composed_of": [COMPONENT],
        "priority": PRIORITY,
        "version": VERSION,
        "_meta": {"managed_by": "ndcollector"},
    }
    return found | ({"data_stream": {}} if is_data_stream else {})


def template_name(pattern: str) -> str:
    """Of its own for each pattern: a cluster lets no template go that a data stream was made by."""
    return f"ndcollector-{pattern.replace('*', 'x')}"


def _properties(described: Schema, path: str, flavor: Flavor) -> dict[str, Any]:
    return {
        name: _field(inner, f"{path}.{name}" if path else name, flavor)
        for name, inner in described["properties"].items()
    }


def _field(described: Schema, path: str, flavor: Flavor) -> dict[str, Any]:
    kind = described.get("type", "string")
    if kind == "object":
        if "properties" in described:
            return {"properties": _properties(described, path, flavor)}
        return {"type": "object"} if path == "system" else dict(_FLAT[flavor])  # measurements have numbers
    if kind in ("integer", "number"):
        return {"type": "long" if kind == "integer" else "double"}
    if described.get("format") == "date-time":
        return {"type": "date"}
    if path in _IPS:
        return {"type": "ip"}
    if path in _LONG_TEXTS:
        return {"type": "keyword", "index": False, "doc_values": False}
    return {"type": "text", "norms": False} if path in _TEXTS else dict(_KEYWORD)


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


class Templates:
    """See the module. One for an output."""

    def __init__(
        self,
        mode: Literal["manage", "check", "none"],
        exchange: Exchange,
        *,
        log: logging.Logger,
        patience_seconds: float,
    ) -> None:
        """`patience_seconds`: how long `check` waits; less than a request may take, else endpoints count as slow."""
        self._mode = mode
        self._exchange = exchange
        self._log = log
        self._patience_seconds = patience_seconds
        self._seen: set[str] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._in_vain: Counter[str] = Counter()
        self._lock = asyncio.Lock()

    async def see_to(self, target: str) -> None:
        """Before a send to this target (which may have % in it); raises Unavailable where `manage` cannot."""
        if self._mode != "manage" or target in self._seen:
            return
        async with self._lock:
            if target not in self._seen:
                await self._install(target)
                self._seen.add(target)

    def sent(self, target: str) -> None:
        """Events went in: now, and not while the cluster is down, `check` may ask."""
        if self._mode == "check" and target not in self._seen and target not in self._asking:
            self._asking[target] = asyncio.create_task(self._try_to_check(target))

    def close(self) -> None:
        """Ask no longer."""
        self._mode = "none"
        for task in self._asking.values():
            task.cancel()

    async def _try_to_check(self, target: str) -> None:
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self._check(target)
        except (Unavailable, TimeoutError) as error:
            self._in_vain[target] += 1
            if self._in_vain[target] < MOST_QUESTIONS:
                return
            reason = error.reason if isinstance(error, Unavailable) else f"no answer in {self._patience_seconds:g}s"
            self._log.info("cannot see whether %s has an index template (%s)", target, reason)
        finally:
            del self._asking[target]
        self._seen.add(target)

    async def _check(self, target: str) -> None:
        example = target.replace("%Y", "2000").replace("%m", "01").replace("%d", "01").replace("%H", "00")
        answer = await self._exchange(Request("POST", f"/_index_template/_simulate_index/{example}"))
        if answer.status != 200:
            self._log.info("cannot see whether %s has an index template (%s)", target, answer.reason)
        elif not _body_of(answer).get("template"):
            self._log.warning(
                "no index template matches %s: the cluster makes a plain index and guesses the fields' types, which "
                "may refuse events later. Install one: template: manage, or ndcollector schema export --form "
                "elasticsearch",
                target,
            )

    async def _install(self, target: str) -> None:
        about = _body_of(await self._asked("GET", "/"))
        version = about.get("version")
        is_opensearch = isinstance(version, dict) and version.get("distribution") == "opensearch"
        flavor: Flavor = "opensearch" if is_opensearch else "elasticsearch"
        await self._put(f"/_component_template/{COMPONENT}", component_template(flavor))
        pattern = target
        for part in ("%Y", "%m", "%d", "%H"):
            pattern = pattern.replace(part, "*")
        template = index_template(pattern, is_data_stream="%" not in target)
        await self._put(f"/_index_template/{template_name(pattern)}", template)

    async def _put(self, path: str, wanted: dict[str, Any]) -> None:
        answer = await self._exchange(Request("GET", path))
        if answer.status == 404:
            found: dict[str, Any] = {}
        else:
            judge(answer)
            found = _only(_body_of(answer))
        if found and found.get("_meta") != wanted["_meta"]:
            raise Unavailable(f"{path[1:]} is there and not ours: rename it, or set template: check")
        same = found.get("index_patterns") == wanted.get("index_patterns")
        if same and isinstance(found.get("version"), int) and found["version"] >= VERSION:
            return
        await self._asked("PUT", path, wanted)
        self._log.info("installed %s, version %d", path[1:], VERSION)

    async def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        """An answer of success; whatever else is Unavailable: without the template nothing is sent."""
        content = b"" if body is None else orjson.dumps(body)
        answer = await self._exchange(Request(method, path, content, {"Content-Type": "application/json"}))
        if not 200 <= answer.status < 300:
            raise Unavailable(
                f"template: manage cannot {method} {path}: {answer.reason}; give the right to, or set template: check"
            )
        return answer


def _body_of(answer: Answer) -> dict[str, Any]:
    try:
        found = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {}


def _only(listed: dict[str, Any]) -> dict[str, Any]:
    """The one template of a GET: {"index_templates": [{"name": …, "index_template": {…}}]}, components alike."""
    for plural, singular in (("index_templates", "index_template"), ("component_templates", "component_template")):
        for one in listed.get(plural) or ():
            found = one.get(singular)
            return found if isinstance(found, dict) else {}
    return {}
