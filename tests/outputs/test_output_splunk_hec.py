"""The `splunk_hec` output: every code of HEC, bad events among good ones, tokens, sizes. None lost, repeats counted."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError
from services.splunk_hec import CODES, SplunkHec

from ndagent.core.metrics import Metrics
from ndagent.wire.record import EventBatch
from ndcollector.outputs import OutputContext, splunk_hec
from tests.outputs.delivering import Line, events_of, numbered


@pytest.fixture
async def server() -> AsyncIterator[SplunkHec]:
    """An indexer."""
    async with SplunkHec() as running:
        yield running


@pytest.fixture
async def make(server: SplunkHec, tmp_path: Path) -> AsyncIterator[Callable[..., Line]]:
    """An output to the server, with these settings."""
    lines: list[Line] = []

    def line(**settings: Any) -> Line:
        quick = {"endpoint_breaker": {"open_for": "50ms"}, "health": None}
        config = splunk_hec.Config(**{"url": server.url, "token": server.token, **quick, **settings})
        metrics = Metrics()
        context = OutputContext(state_dir=tmp_path, metrics=metrics, clock=lambda: 1.7e9)
        lines.append(Line(splunk_hec.build("siem", config, context), config, tmp_path / "letters", metrics))
        return lines[-1]

    yield line
    for one in lines:
        await one.output.aclose()


def arrived(server: SplunkHec) -> Counter[str]:
    """How often each event is there."""
    return Counter(event["event"]["event"]["id"] for event in server.events)


def once(count: int, *, without: tuple[int, ...] = ()) -> Counter[str]:
    return Counter(f"event-{n}" for n in range(count) if n not in without)


def as_text(events: EventBatch, format: str = "cef") -> EventBatch:  # noqa: A002 - EventBatch's name for it
    return replace(events, format=format)


async def test_events_arrive_in_their_envelopes(server: SplunkHec, make: Any) -> None:
    """Time with its fraction, the event's host or the sender's address, the rest from the settings."""
    documents = numbered(2, message='é " \\ \n')
    documents[0]["host"] = {"hostname": 'fw-"1"', "name": "x"}
    line = make(sourcetype="nd:ecs", index="main", indexes={"security_events": "security"}, fields={"site": "b"})
    assert await line.deliver(events_of(documents)) == 0
    common = {"source": "ndcollector", "sourcetype": "nd:ecs", "index": "security", "fields": {"site": "b"}}
    assert server.events == [
        {"time": 1795600800.25, "host": 'fw-"1"', **common, "event": documents[0]},
        {"time": 1795600800.25, "host": "192.0.2.50", **common, "event": documents[1]},
    ]
    assert server.requests == [("/services/collector/event", 2)]


async def test_a_host_may_be_set_for_all(server: SplunkHec, make: Any) -> None:
    """And what is not set is left to the token."""
    await make(host="collector", source=None).deliver(events_of(numbered(1)))
    assert server.events == [{"time": 1795600800.25, "host": "collector", "event": numbered(1)[0]}]


async def test_lines_of_text_are_strings(server: SplunkHec, make: Any) -> None:
    """A format that is no JSON: the line as it is, at the time when it was received."""
    await make().deliver(as_text(events_of(numbered(2))))
    texts = [orjson.dumps(document).decode() for document in numbered(2)]
    assert [event["event"] for event in server.events] == texts
    assert {(event["time"], event["host"]) for event in server.events} == {(1710504000.123, "192.0.2.50")}


async def test_the_raw_endpoint_gets_lines_and_a_channel(server: SplunkHec, make: Any) -> None:
    """What all have in common stands in the query."""
    line = make(endpoint="raw", sourcetype="cef & more", index="security", host="h")
    assert await line.deliver(as_text(events_of(numbered(2)))) == 0
    about = {"source": "ndcollector", "sourcetype": "cef & more", "index": "security", "host": "h"}
    assert server.events == [{**about, "event": orjson.dumps(document).decode()} for document in numbered(2)]


@pytest.mark.parametrize(
    ("count", "keeps_front", "number_from"),
    [(10_000, True, 0), (10_000, False, 0), (500, True, 1), (500, False, 1), (500, True, 7), (500, True, -3)],
)
async def test_one_poisonous_event_in_ten_thousand(
    server: SplunkHec, make: Any, count: int, keeps_front: bool, number_from: int
) -> None:
    """Only it is buried, whether Splunk took those in front of it or not, and however it counts.

    Of the others none is missing; those that may be there twice are counted.
    """
    server.keeps_front, server.number_from = keeps_front, number_from
    bad = count // 2
    server.poison = lambda event: event["event"]["id"] == f"event-{bad}"
    line = make(batch_bytes="16MiB")
    assert await line.deliver(events_of(numbered(count))) == 1
    (letter,) = line.buried()
    assert letter["event"]["event"]["id"] == f"event-{bad}"
    assert "code 6: Invalid data format" in letter["reason"]
    found = arrived(server)
    assert set(found) == set(once(count, without=(bad,)))
    twice = sum(found.values()) - (count - 1)
    assert twice <= line.metric("nd_output_resent_events_total")
    if not keeps_front:
        assert twice == 0
    elif number_from == 0:
        assert found == once(bad) + once(count, without=(bad,))  # those in front, once more each


async def test_many_bad_events(server: SplunkHec, make: Any) -> None:
    """Hints are followed for a while, then halves; every good event arrives and every bad one is buried."""
    server.poison = lambda event: int(event["event"]["id"][6:]) % 3 == 0
    line = make()
    assert await line.deliver(events_of(numbered(100))) == 34
    assert sorted(letter["sequence"] for letter in line.buried()) == list(range(0, 100, 3))
    assert set(arrived(server)) == set(once(100, without=tuple(range(0, 100, 3))))


async def test_everything_is_bad(server: SplunkHec, make: Any) -> None:
    """It ends."""
    server.poison = lambda _event: True
    line = make()
    assert await line.deliver(events_of(numbered(200))) == 200
    assert server.events == []


async def test_a_search_that_takes_too_long_keeps_what_it_found(server: SplunkHec, make: Any) -> None:
    """Half of `timeout`: then the guilty are told, and the next send goes on with the rest."""
    server.poison = lambda event: int(event["event"]["id"][6:]) % 50 == 0
    line = make(timeout="40ms", request_timeout="20ms", batch_bytes="16MiB")
    assert await line.deliver(events_of(numbered(1000))) == 20
    assert set(arrived(server)) == set(once(1000, without=tuple(range(0, 1000, 50))))


@pytest.mark.parametrize("code", [12, 13, 15])
async def test_the_other_codes_of_a_bad_event(server: SplunkHec, make: Any, code: int) -> None:
    """Buried once nothing else is in the request."""
    status, text = CODES[code]
    server.answer = (status, orjson.dumps({"text": text, "code": code, "invalid-event-number": 0}))
    line = make()
    assert await line.deliver(events_of(numbered(3))) == 3
    assert f"code {code}: {text}" in line.buried()[0]["reason"]
    assert orjson.loads(line.buried()[0]["response"])["code"] == code


async def test_a_bad_line_of_the_raw_endpoint_is_found_by_halves(server: SplunkHec, make: Any) -> None:
    """No number is told there."""
    server.poison = lambda text: '"event-7"' in text
    line = make(endpoint="raw")
    assert await line.deliver(events_of(numbered(20))) == 1
    assert [letter["sequence"] for letter in line.buried()] == [7]
    assert len(server.events) == 19


@pytest.mark.parametrize("code", [1, 2, 3, 4, 7, 8, 9, 10, 11, 14, 16, 18, 23, 26, 27])
async def test_codes_that_tell_of_no_event_wait(server: SplunkHec, make: Any, code: int) -> None:
    """A person acts or time passes, and the same events arrive once."""
    status, text = CODES[code]
    server.answer = (status, orjson.dumps({"text": text, "code": code, "invalid-event-number": 1}))

    def mend() -> None:
        server.answer = None

    assert await make().waits_until(events_of(numbered(5)), mend) == 0
    assert arrived(server) == once(5)


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"<html>log in</html>"), (200, b""), (200, b"[]"), (200, b'{"code":99}'), (200, b'{"code":true}'),
        (200, b'{"code":false}'), (200, b'{"code":0.0}'), (204, b""),
        (400, b"<html>"), (404, b'{"text":"The requested URL was not found on this server.","code":404}'),
        (302, b""), (415, b"<html>"), (502, b"<html>"),
    ],
)  # fmt: skip
async def test_answers_that_are_not_splunks_wait(server: SplunkHec, make: Any, answer: tuple[int, bytes]) -> None:
    """A proxy that says yes to everything has not taken anything."""
    server.answer = answer

    def mend() -> None:
        server.answer = None

    assert await make().waits_until(events_of(numbered(5)), mend) == 0
    assert arrived(server) == once(5)


async def test_a_token_without_tls_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It stands in each request."""
    config = splunk_hec.Config(url="http://splunk.example.net:8088", token="t0k3n")
    context = OutputContext(state_dir=tmp_path, metrics=Metrics(), clock=lambda: 1.7e9)
    await splunk_hec.build("siem", config, context).aclose()
    assert "credentials go to http://splunk.example.net:8088 without TLS" in caplog.text


async def test_a_token_that_is_refused_and_then_mended(server: SplunkHec, make: Any, caplog: Any) -> None:
    """The log says what to do and does not show the token."""
    server.settings.enabled = False

    def mend() -> None:
        server.settings.enabled = True

    assert await make().waits_until(events_of(numbered(5)), mend) == 0
    assert arrived(server) == once(5)
    assert "enable it in Splunk" in caplog.text
    assert server.token not in caplog.text


async def test_an_index_that_is_not_allowed_waits(server: SplunkHec, make: Any) -> None:
    """Code 7 names an event, and is no event's fault."""
    line = make(index="secret")
    assert await line.waits_until(events_of(numbered(5)), lambda: server.settings.indexes.append("secret")) == 0
    assert arrived(server) == once(5)


async def test_what_is_too_large_is_cut_and_later_batches_beforehand(server: SplunkHec, make: Any) -> None:
    """413, with a page."""
    server.max_content = 40_000
    line = make(compression="none")
    await line.deliver(events_of(numbered(1_000)))
    learned = len(server.requests)
    await line.deliver(events_of(numbered(1_000, first=1_000), first=1_000))
    assert arrived(server) == once(2_000)
    assert sum(count for _, count in server.requests[learned:]) == 1_000


async def test_an_event_that_alone_is_too_large_is_a_dead_letter(server: SplunkHec, make: Any) -> None:
    """The rest of its batch arrives, once."""
    server.max_content = 20_000
    documents = numbered(50)
    documents[20]["message"] = "x" * 30_000
    line = make(compression="none")
    assert await line.deliver(events_of(documents)) == 1
    assert arrived(server) == once(50, without=(20,))


async def test_a_lost_answer_means_twice_and_never_none(server: SplunkHec, make: Any) -> None:
    """HEC has no key by which it would know an event again; event.id is in each."""
    server.lose_answers = 1
    assert await make().deliver(events_of(numbered(5))) == 0
    assert arrived(server) == once(5) + once(5)


async def test_a_health_check_goes_to_hecs_own(server: SplunkHec, make: Any) -> None:
    """Where nothing else is written."""
    health = splunk_hec.Config(url=server.url, token="x").health
    assert health is not None
    assert health.path == "/services/collector/health"
    line = make(health=health)
    server.is_healthy = False
    assert await line.deliver(events_of(numbered(1))) == 0  # there is no other endpoint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": "raw", "fields": {"a": "b"}}, "cannot be sent to the raw endpoint"),
        ({"ack": True, "timeout": "200s"}, "more than ack_timeout and request_timeout together"),
        ({"token": "with\nline feed"}, "line feed"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    """At the start, with the remedy."""
    with pytest.raises(ValidationError, match=message):
        splunk_hec.Config(**{"url": "https://siem:8088", "token": "t", **settings})
