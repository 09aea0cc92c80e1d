"""Indexer acknowledgement: send() ends when an indexer says true, and no restart makes a lost event look indexed."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from services.splunk_hec import SplunkHec

from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndcollector.outputs import OutputContext, splunk_hec
from tests.outputs.delivering import Line, events_of, numbered


@pytest.fixture
async def server() -> AsyncIterator[SplunkHec]:
    """An indexer whose token has acknowledgement."""
    async with SplunkHec() as running:
        running.settings.ack = True
        yield running


@pytest.fixture
async def make(server: SplunkHec, tmp_path: Path) -> AsyncIterator[Callable[..., Line]]:
    """An output that wants acknowledgements, quickly."""
    lines: list[Line] = []

    def line(**settings: Any) -> Line:
        quick = {"endpoint_breaker": {"open_for": "50ms"}, "health": None, "ack": True, "ack_poll": "8ms"}
        config = splunk_hec.Config(**{"url": server.url, "token": server.token, **quick, **settings})
        metrics = Metrics()
        context = OutputContext(state_dir=tmp_path, metrics=metrics, clock=lambda: 1.7e9)
        lines.append(Line(splunk_hec.build("siem", config, context), config, tmp_path / "letters", metrics))
        return lines[-1]

    yield line
    for one in lines:
        await one.output.aclose()


def arrived(server: SplunkHec) -> Counter[str]:
    """How often each event is indexed."""
    return Counter(event["event"]["event"]["id"] for event in server.events)


async def until(what: Callable[[], object]) -> None:
    """Turns of the loop until it is so; the test's own time limit is the end."""
    while not what():
        await asyncio.sleep(0.001)


async def test_a_send_ends_with_the_indexers_word(server: SplunkHec, make: Any) -> None:
    """Asked again and again: false, false, true."""
    sending = asyncio.ensure_future(make().deliver(events_of(numbered(3))))
    await until(lambda: len(server.asked) > 4)
    assert not sending.done()
    server.index()
    assert await sending == 0
    assert arrived(server) == Counter(["event-0", "event-1", "event-2"])


async def test_sends_under_way_have_a_channel_each_and_use_it_again(server: SplunkHec, make: Any) -> None:
    """So that a number can only be that of one request; and there are no more channels than sends at a time."""
    line = make()
    for rounds in range(3):
        first = rounds * 40
        sends = [line.deliver(events_of(numbered(10, first=n), first=n)) for n in range(first, first + 40, 10)]
        together = asyncio.gather(*sends)
        await until(lambda: len(server._waiting) == 4)
        server.index()
        await together
    assert sorted(server.channels.values()) == [3, 3, 3, 3]
    assert sum(arrived(server).values()) == len(arrived(server)) == 120


async def test_a_restart_loses_what_was_not_indexed_and_it_is_sent_again(server: SplunkHec, make: Any) -> None:
    """The number is unknown then, for ever false: after ack_timeout the events go out anew, and that is counted."""
    line = make(ack_timeout="100ms")
    sending = asyncio.ensure_future(line.deliver(events_of(numbered(5))))
    await until(lambda: server._waiting)
    server.restart()
    await until(lambda: server._waiting)
    server.index()
    assert await sending == 0
    assert arrived(server) == Counter(f"event-{n}" for n in range(5))
    assert line.metric("nd_output_resent_events_total") == 5


async def test_numbers_that_begin_again_acknowledge_nobody_else(server: SplunkHec, make: Any) -> None:
    """A restarted indexer gives number 0 to a new request: an old one with number 0 must not take it for its own."""
    line = make(ack_timeout="150ms")
    lost = asyncio.ensure_future(line.deliver(events_of(numbered(5))))
    await until(lambda: server._waiting)
    server.restart()
    new = asyncio.ensure_future(line.deliver(events_of(numbered(5, first=5), first=5)))
    await until(lambda: server._waiting)
    server.index()
    assert await new == 0
    assert not lost.done()
    await until(lambda: server._waiting)
    server.index()
    assert await lost == 0
    assert arrived(server) == Counter(f"event-{n}" for n in range(10))


async def test_an_answer_lost_with_its_number(server: SplunkHec, make: Any) -> None:
    """The number that comes with the second answer is of the second request, whichever channel it went by."""
    server.lose_answers = 1
    line = make()
    sending = asyncio.ensure_future(line.deliver(events_of(numbered(5))))
    await until(lambda: len(server._waiting) == 2)
    server.index()
    assert await sending == 0
    assert set(arrived(server).values()) == {2}


async def test_a_true_that_got_lost_is_asked_for_and_then_sent_again(server: SplunkHec, make: Any) -> None:
    """Splunk tells it once; twice indexed is what is left then, never not at all."""
    server.answers_acks = False
    line = make(ack_timeout="60ms")
    sending = asyncio.ensure_future(line.deliver(events_of(numbered(2))))
    await until(lambda: server._waiting)
    server.index()
    await until(lambda: server._waiting)
    server.answers_acks = True
    server.index()
    assert await sending == 0
    assert set(arrived(server).values()) == {2}


async def test_an_indexer_that_is_away_while_it_is_asked(server: SplunkHec, make: Any) -> None:
    """Questions that fail are put again, the events are not."""
    sending = asyncio.ensure_future(make(ack_timeout="30s", timeout="60s").deliver(events_of(numbered(2))))
    await until(lambda: server.asked and server._waiting)
    await server.stop()
    await asyncio.sleep(0.02)
    await server.start()
    server.index()
    assert await sending == 0
    assert set(arrived(server).values()) == {1}


async def test_a_token_without_acknowledgement_is_found_out_first(server: SplunkHec, make: Any) -> None:
    """Else the same events would be taken again and again."""
    server.settings.ack = False
    line = make()
    with pytest.raises(Unavailable, match="set ack: false"):
        await line.output.send(events_of(numbered(2)))
    assert server.requests == []


async def test_a_token_with_acknowledgement_wants_it_used(server: SplunkHec, make: Any) -> None:
    """Code 10 without a channel, which we never leave out; the events are taken and wait for no one."""
    line = make(ack=False)
    assert await line.deliver(events_of(numbered(2))) == 0
    server.index()
    assert set(arrived(server).values()) == {1}


async def test_two_indexers_are_asked_for_what_each_took(server: SplunkHec, make: Any) -> None:
    """A number means nothing to the other one."""
    async with SplunkHec() as other:
        other.settings.ack, other.token = True, server.token
        line = make(url=None, urls=[server.url, other.url], balance="round_robin")
        sends = [line.deliver(events_of(numbered(5, first=n), first=n)) for n in range(0, 40, 5)]
        together = asyncio.gather(*sends)
        await until(lambda: len(server._waiting) + len(other._waiting) == 8)
        assert server._waiting
        assert other._waiting
        server.index()
        other.index()
        await together
        assert len(arrived(server) + arrived(other)) == 40
        took = {channel for channel, _ in server.asked} & {channel for channel, _ in other.asked}
        assert took == set()


def test_with_acknowledgement_more_is_under_way() -> None:
    """A second of waiting for each batch would otherwise be most of the time."""
    config = splunk_hec.Config(url="https://siem:8088", token="t", ack=True)
    assert (config.in_flight, config.timeout) == (32, 240)
    assert splunk_hec.Config(url="https://siem:8088", token="t", ack=True, in_flight=2).in_flight == 2
