"""The `elasticsearch` output: what each answer of the bulk API means for each event. Nothing lost, nothing twice."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import ValidationError
from services.elasticsearch import Elasticsearch

from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndcollector.__main__ import main
from ndcollector.formats import FormatConfig, formatter
from ndcollector.outputs import OutputContext, elasticsearch
from ndcollector.outputs.elasticsearch_template import COMPONENT, component_template, index_template
from ndcollector.schema import STREAMS, schema
from tests.outputs.delivering import Line, events_of, numbered
from tests.waiting import until

TARGET = "logs-nd.security_events-default"
ONE_CREATED = b'{"errors":false,"items":[{"create":{"status":201}}]}'


@pytest.fixture
async def server() -> AsyncIterator[Elasticsearch]:
    """One that has our templates."""
    async with Elasticsearch() as running:
        running.components[COMPONENT] = component_template()
        running.templates["ours"] = index_template("logs-*-*", is_data_stream=True)
        yield running


@pytest.fixture
async def make(server: Elasticsearch, tmp_path: Path) -> AsyncIterator[Callable[..., Line]]:
    """An output to the server, with these settings."""
    lines: list[Line] = []

    def line(**settings: Any) -> Line:
        config = elasticsearch.Config(url=server.url, endpoint_breaker={"open_for": "50ms"}, **settings)
        metrics = Metrics()
        context = OutputContext(state_dir=tmp_path, metrics=metrics, clock=lambda: 1.7e9)
        lines.append(Line(elasticsearch.build("siem", config, context), config, tmp_path / "letters", metrics))
        return lines[-1]

    yield line
    for one in lines:
        await one.output.aclose()


def ids(server: Elasticsearch, target: str = TARGET) -> list[str]:
    return sorted(server.documents.get(target, {}))


async def test_events_arrive_as_they_are_under_their_own_ids(server: Elasticsearch, make: Any) -> None:
    """In the data stream of their stream, by one request."""
    documents = numbered(3, message='é " \\ \n')
    assert await make().deliver(events_of(documents)) == 0
    assert server.streams == {TARGET}
    assert server.documents[TARGET] == {document["event"]["id"]: document for document in documents}
    assert [count for _, count in server.requests] == [3]


async def test_a_200_with_errors_inside_is_read_event_by_event(server: Elasticsearch, make: Any) -> None:
    """Created, there already, too busy twice, not to be parsed: each goes its own way, and only the busy one again."""
    line = make()
    await line.deliver(events_of(numbered(1)))
    documents = numbered(5)
    documents[2]["source"] = {"port": "http"}
    documents[4]["source"] = {"ip": "nowhere"}
    busy = iter([True, True])
    server.busy = lambda _id: _id == "event-3" and next(busy, False)
    assert await line.deliver(events_of(documents)) == 2
    assert ids(server) == ["event-0", "event-1", "event-3"]
    assert [count for _, count in server.requests] == [1, 5, 1, 1]
    letters = line.buried()
    assert [letter["event"]["event"]["id"] for letter in letters] == ["event-2", "event-4"]
    assert "failed to parse field [source.port] of type [long]" in letters[0]["reason"]
    assert "failed to parse field [source.ip] of type [ip]" in letters[1]["reason"]


async def test_a_lost_answer_is_made_good_by_the_ids(server: Elasticsearch, make: Any) -> None:
    """The cluster did its work and the connection broke: the repeat finds every event there, 409, and is content."""
    server.lose_answers = 2
    assert await make().deliver(events_of(numbered(20))) == 0
    assert len(server.requests) == 3
    assert len(ids(server)) == 20


async def test_one_poisonous_event_in_ten_thousand_costs_itself_alone(server: Elasticsearch, make: Any) -> None:
    """The mapping names it: one request, and no other event is sent twice."""
    line = make()
    documents = numbered(10_000)
    documents[7_654]["source"] = {"port": "poison"}
    assert await line.deliver(events_of(documents)) == 1
    assert [count for _, count in server.requests] == [10_000]
    assert len(ids(server)) == 9_999
    assert [letter["sequence"] for letter in line.buried()] == [7_654]


async def test_a_poison_that_spoils_the_request_is_found_by_halves(server: Elasticsearch, make: Any) -> None:
    """An id of more than 512 bytes refuses the whole request, and the answer names no position."""
    line = make()
    documents = numbered(10_000)
    documents[1_234]["event"]["id"] = "x" * 513
    assert await line.deliver(events_of(documents)) == 1
    assert len(ids(server)) == 9_999
    (letter,) = line.buried()
    assert letter["sequence"] == 1_234
    assert "no longer than 512 bytes but was: 513" in letter["reason"]
    assert sum(count for _, count in server.requests) == 9_999  # each once: a refused request holds nothing


async def test_what_is_too_large_is_cut_and_later_batches_beforehand(server: Elasticsearch, make: Any) -> None:
    """413: with an empty answer, as the HTTP layer gives it."""
    server.max_content = 40_000
    line = make(compression="none")
    await line.deliver(events_of(numbered(1_000)))
    learned = len(server.requests)
    await line.deliver(events_of(numbered(1_000, first=1_000), first=1_000))
    assert len(ids(server)) == 2_000
    assert sum(count for _, count in server.requests[learned:]) == 1_000
    assert line.buried() == []


async def test_an_event_that_alone_is_too_large_is_a_dead_letter(server: Elasticsearch, make: Any) -> None:
    """The rest of its batch arrives."""
    server.max_content = 20_000
    line = make(compression="none")
    documents = numbered(50)
    documents[20]["message"] = "x" * 30_000
    assert await line.deliver(events_of(documents)) == 1
    assert [letter["sequence"] for letter in line.buried()] == [20]
    assert len(ids(server)) == 49


def _set(name: str, wrong: object, right: object) -> Callable[[Elasticsearch], Callable[[], None]]:
    def spoil(server: Elasticsearch) -> Callable[[], None]:
        setattr(server, name, wrong)
        return lambda: setattr(server, name, right)

    return spoil


def _all_refused(kind: str, reason: str) -> tuple[int, bytes]:
    """Five results of status 400 with one error."""
    item = {"create": {"status": 400, "error": {"type": kind, "reason": reason}}}
    return 200, orjson.dumps({"errors": True, "items": [item] * 5})


NO_MORE_SHARDS = (
    "Validation Failed: 1: this action would add [2] shards, but this cluster currently has [1000]/[1000] maximum "
    "normal shards open;"
)

FAULTS = {
    "read-only index": (_set("blocked", {TARGET}, set()), {}),
    "no such index": (_set("auto_create", False, True), {}),
    "wrong key": (_set("api_key", "another", None), {}),
    "missing pipeline": (_set("known_pipelines", set(), {"enrich"}), {"pipeline": "enrich"}),
    "a proxy that says 200": (_set("answer", (200, b"<html>log in</html>"), None), {}),
    "an answer for other events": (_set("answer", (200, ONE_CREATED), None), {}),
    "results without status": (_set("answer", (200, b'{"errors":true,"items":[{},[],1,{"create":{}},2]}'), None), {}),
    "not found": (_set("answer", (404, b"no route"), None), {}),
    "wrong media type": (_set("answer", (406, b'{"error":"Content-Type","status":406}'), None), {}),
    "a redirect": (_set("answer", (302, b""), None), {}),
    "bad gateway": (_set("answer", (502, b"<html>"), None), {}),
    "too many requests": (_set("answer", (429, b'{"error":{"type":"circuit_breaking_exception"}}'), None), {}),
    "no room for a new index": (_set("answer", _all_refused("validation_exception", NO_MORE_SHARDS), None), {}),
    "the same from Amazon's": (_set("answer", _all_refused("illegal_argument_exception", NO_MORE_SHARDS), None), {}),
    "a 400 of nobody": (_set("answer", (400, b"<html>bad request</html>"), None), {}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_no_events_fault_waits_until_it_is_mended(server: Elasticsearch, make: Any, fault: str) -> None:
    """No dead letter, no loss: a person acts, and the same events arrive."""
    spoil, settings = FAULTS[fault]
    line = make(template="none", **settings)
    mend = spoil(server)
    assert await line.waits_until(events_of(numbered(5)), mend) == 0
    assert len(ids(server)) == 5


async def test_a_blocked_index_and_a_bad_event_in_one_answer(server: Elasticsearch, make: Any) -> None:
    """By time, so that one request has two indexes: what can be decided is decided, the rest waits."""
    line = make(target="events-%Y.%m.%d", template="none")
    documents = numbered(4)
    documents[0]["@timestamp"] = documents[1]["@timestamp"] = "2026-11-24T23:59:59Z"
    server.blocked = {"events-2026.11.24"}
    server.documents["events-2026.11.24"] = {}
    mend = server.blocked.clear
    assert await line.waits_until(events_of(documents), mend) == 0
    assert ids(server, "events-2026.11.24") == ["event-0", "event-1"]
    assert ids(server, "events-2026.11.25") == ["event-2", "event-3"]
    assert server.requests[0] == ("/_bulk?filter_path=errors,items.*.status,items.*.error", 4)
    assert {count for _, count in server.requests[1:]} == {2}


async def test_a_replay_finds_its_events_there(server: Elasticsearch, make: Any) -> None:
    """Sent again as asked, delivered once."""
    line = make()
    await line.deliver(events_of(numbered(5)))
    assert await line.deliver(events_of(numbered(6), replay=True)) == 0
    assert len(ids(server)) == 6


async def test_an_event_without_an_id_gets_one_that_stays(server: Elasticsearch, make: Any) -> None:
    """A transform may have taken it; the place in the spool is left."""
    line = make()
    document = {"@timestamp": "2026-11-25T10:00:00Z"}
    for _ in range(2):
        await line.deliver(events_of([document], first=36))
    assert ids(server) == ["spool-10"]


@pytest.mark.parametrize("form", ["cef", "raw", {"name": "flat", "syslog_header": "rfc5424"}])
def test_text_is_refused_at_the_start(form: object) -> None:
    """A document is a JSON object."""
    with pytest.raises(ValidationError, match=r"cannot send|has no syslog_header"):
        elasticsearch.Config(url="http://127.0.0.1:9200", format=form)


async def test_flat_events_keep_their_ids(server: Elasticsearch, make: Any) -> None:
    """`event.id` as one name."""
    events = replace(events_of([{"@timestamp": "2026-11-25T10:00:00Z", "event.id": "event-0"}]), format="flat")
    await make(target="flat", template="none").deliver(events)
    assert ids(server, "flat") == ["event-0"]


@pytest.mark.parametrize("form", ["ecs", "flat"])
async def test_no_sender_chooses_the_id_of_another_event(server: Elasticsearch, make: Any, form: str) -> None:
    """With a neighbour's future id he would have that one taken for delivered (409)."""
    forged = {"@timestamp": "2026-11-25T10:00:00Z", "event": {"id": "event-0"}, "event.id": "event-1"}
    neighbour = {"@timestamp": "2026-11-25T10:00:00Z", "event": {"id": "event-1"}}
    form_of = formatter(FormatConfig(name=form)) or (lambda events: events)
    await make(target="t", template="none").deliver(form_of(events_of([forged, neighbour])))
    assert ids(server, "t") == ["event-0", "event-1"]


async def test_a_missing_template_is_said_once(
    server: Elasticsearch, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Events are sent all the same; guessed types are worth a warning with its remedy."""
    server.templates.clear()
    line = make()
    for first in (0, 5):
        await line.deliver(events_of(numbered(5, first=first), first=first))
        await until(lambda: "no index template matches" in caplog.text, "the warning")
    await line.deliver(events_of(numbered(1)))
    said = [record for record in caplog.records if "no index template matches" in record.message]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert len(ids(server)) == 10


async def test_a_check_that_is_not_allowed_stops_nothing(server: Elasticsearch, make: Any) -> None:
    """A key that may only create documents is the right one to have."""
    server.may_manage = False
    assert await make().deliver(events_of(numbered(5))) == 0
    assert len(ids(server)) == 5


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "1"}])
async def test_a_check_that_fails_stops_nothing_and_is_not_made_for_ever(
    server: Elasticsearch, make: Any, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    """What speaks like a cluster may know no templates, and answer 5xx to the question, or ask for a pause."""
    server.answer_question = lambda: _refused(headers)
    line = make()
    with caplog.at_level(logging.INFO):
        for asked in (1, 2, 3):
            await _sent_in_the_end(line, asked)
            await until(lambda asked=asked: server.questions == asked, f"question {asked}")
        await until(lambda: "cannot see whether" in caplog.text, "the line that says so")
        await _sent_in_the_end(line, 4)
    assert len(ids(server)) == 4
    assert server.questions == 3
    assert len([one for one in caplog.records if "cannot see whether" in one.message]) == 1


async def _refused(headers: dict[str, str]) -> web.Response:
    return web.Response(status=503, headers=headers)


async def _sent_in_the_end(line: Line, number: int) -> None:
    """A pause that the question brought about is waited for, as in earnest."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await line.output.send(events_of(numbered(1, first=number), first=number))
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_seconds or 0.01)


async def test_a_check_that_hangs_holds_up_no_send_and_no_endpoint_is_blamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many endpoints there are to ask one after the other; closing does not wait for the answer either."""
    hanging = asyncio.Event()

    async def in_the_end() -> web.Response:
        await hanging.wait()
        return web.json_response({})

    metrics = Metrics()
    context = OutputContext(state_dir=tmp_path, metrics=metrics, clock=lambda: 1.7e9)
    async with Elasticsearch() as one, Elasticsearch() as two, Elasticsearch() as three:
        servers = (one, two, three)
        for server in servers:
            server.answer_question = in_the_end
        urls = [server.url for server in servers]
        config = elasticsearch.Config(urls=urls, request_timeout="400ms", timeout="1s", connect_timeout="300ms")
        line = Line(elasticsearch.build("siem", config, context), config, tmp_path / "letters", metrics)
        with caplog.at_level(logging.INFO):
            for asked in (1, 2, 3):
                for first in (asked, 10 + asked):  # one that the question follows, and one while it hangs
                    async with asyncio.timeout(10):
                        await line.output.send(events_of(numbered(1, first=first), first=first))
                    await until(lambda asked=asked: sum(one.questions for one in servers) >= asked, f"question {asked}")
                if asked < 3:
                    await until(lambda asked=asked: _withdrawn(metrics) >= asked, "the end of its patience")
            await line.output.aclose()
        hanging.set()
    assert sum(len(ids(server)) for server in servers) == 6
    assert sum(one.questions for one in servers) == 3
    assert "left out" not in caplog.text


def _withdrawn(metrics: Metrics) -> float:
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return sum(one.value for one in samples if one.labels.get("result") == "withdrawn" and "created" not in one.name)


async def test_a_cluster_that_is_down_is_asked_once_it_is_up(
    server: Elasticsearch, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """However long it was down, and nothing before: the warning is for the day when events go in."""
    server.templates.clear()
    line = make()
    server.answer = (502, b"down")
    for _ in range(8):
        with pytest.raises(Unavailable):
            await line.output.send(events_of(numbered(1)))
        await asyncio.sleep(0.06)  # the endpoint's breaker
    assert server.questions == 0
    server.answer = None
    await line.deliver(events_of(numbered(1)))
    await until(lambda: "no index template matches" in caplog.text, "the warning")
    assert len([one for one in caplog.records if "no index template matches" in one.message]) == 1


async def test_templates_are_installed_before_the_first_event_and_once(server: Elasticsearch, make: Any) -> None:
    """So that the first document does not decide the types."""
    server.components.clear()
    server.templates.clear()
    documents = numbered(2)
    documents[1]["source"] = {"ip": "poison"}
    assert await make(template="manage").deliver(events_of(documents)) == 1
    assert server.streams == {TARGET}
    assert server.templates[f"ndcollector-{TARGET}"]["composed_of"] == [COMPONENT]
    server.templates[f"ndcollector-{TARGET}"]["priority"] = 999  # the owner's change stays
    assert await make(template="manage").deliver(events_of(numbered(1, first=7), first=7)) == 0
    assert server.templates[f"ndcollector-{TARGET}"]["priority"] == 999


async def test_templates_that_cannot_be_installed_hold_the_events_back(server: Elasticsearch, make: Any) -> None:
    """Whoever asked for them wants no document before they are there."""
    server.templates.clear()
    server.may_manage = False

    def mend() -> None:
        assert ids(server) == []
        server.may_manage = True

    assert await make(template="manage").waits_until(events_of(numbered(5)), mend) == 0
    assert server.streams == {TARGET}


async def test_somebody_elses_template_is_not_touched(server: Elasticsearch, make: Any) -> None:
    """Even one with our name."""
    theirs = {"index_patterns": ["logs-nd.*"], "version": 7}
    server.templates[f"ndcollector-{TARGET}"] = theirs
    with pytest.raises(Unavailable, match="is there and not ours"):
        await make(template="manage").output.send(events_of(numbered(1)))
    assert server.templates[f"ndcollector-{TARGET}"] == theirs


@pytest.mark.parametrize("target", ["", "Logs", "a b", "-a", "_all", "a/b", "a,b", "%Y-{host}", "%s", "x" * 201, "a*"])
def test_names_that_no_index_can_have_are_refused_at_the_start(target: str) -> None:
    """The cluster would refuse every event instead."""
    with pytest.raises(ValidationError, match="is no name of a data stream or index"):
        elasticsearch.Config(url="http://127.0.0.1:9200", target=target)


def test_opensearch_has_another_word_for_flattened() -> None:
    """And no other difference."""
    ours, theirs = (str(component_template(flavor)) for flavor in ("elasticsearch", "opensearch"))
    assert "flat_object" not in ours
    assert ours.replace("{'type': 'flattened', 'ignore_above': 1024}", "{'type': 'flat_object'}") == theirs


def _described(properties: dict[str, Any], path: str = "") -> set[str]:
    found = set()
    for name, inner in properties.items():
        deeper = inner.get("properties")
        found |= _described(deeper, f"{path}{name}.") if deeper else {path + name}
    return found


@pytest.mark.parametrize("stream", STREAMS)
def test_every_field_of_the_schema_has_a_type(stream: str) -> None:
    """A new key of the decoder is mapped with it, or this fails."""
    mapped = _described(component_template()["template"]["mappings"]["properties"])
    assert _described(schema(stream)["properties"]) <= mapped


def test_the_command_prints_the_template(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """For who installs it himself."""
    assert main(["schema", "export", "--form", "opensearch"]) == 0
    assert orjson.loads(capsys.readouterr().out) == component_template("opensearch")
    assert main(["schema", "export", "--form", "elasticsearch", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert orjson.loads(path.read_bytes()) == component_template()
