"""The `relp` output against a server that answers, refuses, holds, closes, or is none."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from services.process import free_port

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndcollector.outputs import OutputContext, relp, syslog_endpoint
from ndcollector.outputs.relp import Config, RelpOutput
from tests.events import event_batch
from tests.syslog_receivers import RelpReceiver, Site


class Rig:
    """A server, and an output to it."""

    def __init__(self, directory: Path, server: RelpReceiver) -> None:
        self.directory = directory
        self.server = server
        self.metrics = Metrics()
        self.output = self.make()

    def make(self, **settings: Any) -> RelpOutput:
        defaults = {"endpoints": [f"127.0.0.1:{self.server.port}"], "tls": None, "window": 4}
        context = OutputContext(state_dir=self.directory, metrics=self.metrics, clock=lambda: 0.0)
        return relp.build("siem", Config(**defaults | settings), context)

    @property
    def resent(self) -> float:
        return self.metrics.registry.get_sample_value("nd_output_resent_events_total", {"output": "siem"}) or 0.0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    server = RelpReceiver()
    await server.start()
    made = Rig(tmp_path, server)
    yield made
    await made.output.aclose()
    await server.stop()


async def until(is_so: Any) -> None:
    while not is_so():
        await asyncio.sleep(0.005)


async def test_a_send_ends_when_every_message_is_answered(rig: Rig) -> None:
    """Not one answer earlier."""
    rig.server.script = lambda sequences: "silence" if sequences == [9] else "OK"
    sending = asyncio.ensure_future(rig.output.send(event_batch(range(10))))
    await until(lambda: rig.server.received == list(range(10)))
    await asyncio.sleep(0.02)
    assert not sending.done()
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending


async def test_never_more_than_the_window_is_unanswered(rig: Rig) -> None:
    """It bounds what a server must hold, and what is sent again."""
    rig.server.holding = True
    sending = asyncio.ensure_future(rig.output.send(event_batch(range(10))))
    await until(lambda: len(rig.server.held) == 4)
    await asyncio.sleep(0.02)
    assert len(rig.server.held) == 4
    rig.server.release()
    await sending
    assert rig.server.kept == list(range(10))


async def test_a_refused_message_is_named_and_the_others_are_not_sent_again(rig: Rig) -> None:
    """The machine buries what is named, and asks for the rest again: they were taken already."""
    rig.server.script = lambda sequences: "NEVER" if sequences[0] in (3, 7) else "OK"
    batch = event_batch(range(10))
    with pytest.raises(Rejected, match="500 refused") as caught:
        await rig.output.send(batch)
    assert caught.value.indexes == [3, 7]
    await rig.output.send(batch.select([one for one in range(10) if one not in (3, 7)]))
    assert rig.server.received == list(range(10))
    assert rig.resent == 0
    assert rig.server.sessions == 1


async def test_what_was_answered_before_a_break_is_not_sent_again(rig: Rig) -> None:
    """What was not, is, and is counted: it may have arrived."""
    broken = iter([True])
    rig.server.script = lambda sequences: "close" if sequences == [5] and next(broken, False) else "OK"
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+: "):
        await rig.output.send(event_batch(range(10)))
    await rig.output.send(event_batch(range(10)))
    assert rig.server.kept == list(range(10))
    assert 1 <= rig.resent <= 5


async def test_a_server_that_stops_while_nothing_comes(rig: Rig) -> None:
    """The next send opens a new session."""
    await rig.output.send(event_batch(range(3)))
    rig.server.close_sessions()
    await asyncio.sleep(0.02)
    await rig.output.send(event_batch(range(3, 6)))
    assert rig.server.kept == list(range(6))
    assert (rig.server.sessions, rig.resent) == (2, 0)


async def test_a_status_that_relp_has_not_is_unavailable(rig: Rig) -> None:
    """Neither yes nor no: the event waits."""
    rig.server.script = lambda _sequences: "LATER 1"
    with pytest.raises(Unavailable, match="the server answered 503 busy"):
        await rig.output.send(event_batch(range(3)))


async def test_an_answer_without_a_status_is_no_yes(rig: Rig) -> None:
    """Only `close` is answered by nothing."""
    rig.server.script = lambda _sequences: "WORDLESS"
    with pytest.raises(Unavailable, match="a response without a status"):
        await rig.output.send(event_batch(range(3)))


async def test_an_operators_replay_is_sent_whole(rig: Rig) -> None:
    """Even what was answered a moment ago, in a batch that did not end."""
    rig.server.script = lambda sequences: "close" if sequences == [5] else "OK"
    batch = event_batch(range(10))
    with pytest.raises(Unavailable):
        await rig.output.send(batch)
    rig.server.script = lambda _sequences: "OK"
    rig.server.kept.clear()
    await rig.output.send(type(batch)(**{f: getattr(batch, f) for f in batch.__slots__} | {"replay": True}))
    assert rig.server.kept == list(range(10))


@pytest.mark.parametrize(
    ("offers", "what"),
    [
        (b"500 no", "it refused the session: 500 no"),
        (b"200 OK\nrelp_version=0\ncommands=other", "does not offer the command syslog"),
    ],
)
async def test_a_server_that_cannot_be_used(rig: Rig, offers: bytes, what: str) -> None:
    """The reason reaches the log."""
    rig.server.offers = offers
    with pytest.raises(Unavailable, match=what):
        await rig.output.send(event_batch(range(3)))


async def test_what_answers_is_no_relp_server(rig: Rig) -> None:
    """A wrong port: said at once, not after a timeout."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    output = rig.make(endpoints=[f"127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    with pytest.raises(Unavailable, match="not a RELP frame: b'HTTP"):
        await output.send(event_batch(range(3)))
    server.close()


async def test_a_server_without_tls_gets_nothing(rig: Rig, tmp_path: Path) -> None:
    """Plain TCP must be asked for."""
    output = rig.make(tls=Site(tmp_path / "pki").tls(), connect_timeout="1s")
    sending = asyncio.ensure_future(output.send(event_batch(range(3))))
    with pytest.raises(Unavailable):
        await sending
    assert rig.server.received == []
    assert Config(endpoints=["siem:2514"]).tls is not None


async def test_the_first_receiver_is_used_again_when_it_is_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two batches, with a close in order."""
    first = RelpReceiver()
    first.port = free_port()
    output = rig.make(endpoints=[f"127.0.0.1:{first.port}", f"127.0.0.1:{rig.server.port}"])
    await output.send(event_batch(range(3)))
    await first.start()
    await output.send(event_batch(range(3, 6)))
    monkeypatch.setattr(syslog_endpoint, "RETURN_SECONDS", 0.0)
    await output.send(event_batch(range(6, 9)))
    assert (rig.server.kept, first.kept) == (list(range(6)), [6, 7, 8])
    assert rig.server.closed_in_order == 1
    await output.aclose()
    await first.stop()


@pytest.mark.parametrize("first", ["refuses the session", "never answers open", "never answers a message"])
async def test_a_receiver_that_takes_connections_and_no_events_does_not_keep_the_others_from_it(
    rig: Rig, first: str
) -> None:
    """It answers the connection, which is all that the choice of a receiver sees; the next try is for another one."""
    bad = RelpReceiver()
    bad.offers = b"500 no" if first == "refuses the session" else bad.offers
    bad.script = lambda _sequences: "silence"
    if first == "never answers open":
        bad.mute = True
    await bad.start()
    endpoints = [f"127.0.0.1:{bad.port}", f"127.0.0.1:{rig.server.port}"]
    output = rig.make(endpoints=endpoints, connect_timeout="200ms", timeout="400ms")
    if first == "never answers a message":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):  # as delivery.Timeout does
                await output.send(event_batch(range(3)))
    await output.send(event_batch(range(3)))
    assert rig.server.kept == [0, 1, 2]
    assert bad.kept == []
    await output.aclose()
    await bad.stop()


async def test_a_server_that_speaks_first_is_none_of_relp(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The port of SSH, say: in words, and not as a traceback of the event loop."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    output = rig.make(endpoints=[f"127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    with pytest.raises(Unavailable, match="not a RELP frame: b'SSH"):
        await output.send(event_batch(range(3)))
    assert not caplog.records
    server.close()


async def test_a_server_that_answers_with_a_book_costs_little(rig: Rig) -> None:
    """The words of a refusal are kept for each event: they are cut, or a hostile server fills our memory."""
    rig.server.script = lambda _sequences: "NEVER"
    rig.server.refusal = b"500 " + b"x" * 100_000
    with pytest.raises(Rejected) as caught:
        await rig.output.send(event_batch(range(10)))
    assert list(caught.value.reasons) == list(range(10))
    assert max(len(reason) for reason in [caught.value.reason, *caught.value.reasons.values()]) < 1000


async def test_a_message_that_is_too_long_is_refused_here(rig: Rig) -> None:
    """A receiver that closes the connection at it would be sent it for ever, and nothing behind it."""
    output = rig.make(max_message_bytes=1024)
    events = event_batch(range(3))
    lines = [bytes(line) for line in events.lines()]
    for size, is_taken in ((1024, True), (1025, False)):
        lines[1] = b'{"event":{"sequence":1},"message":"'.ljust(size - 2, b"x") + b'"}\n'
        longer = replace(events, ndjson=b"".join(lines), lengths=array("I", map(len, lines)), replay=True)
        if is_taken:
            await output.send(longer)
            continue
        with pytest.raises(Rejected) as caught:
            await output.send(longer)
        assert caught.value.reasons == {1: "the message has 1025 bytes, max_message_bytes are 1024"}
    assert rig.server.kept == [0, 1, 2]
    await output.aclose()


async def test_a_close_that_is_cancelled_leaves_nothing_open(rig: Rig) -> None:
    """At a stop that waits no longer, or in a return to another receiver that took too long."""
    await rig.output.send(event_batch(range(3)))
    session = rig.output._session
    assert session is not None
    rig.server.mute = True
    closing = asyncio.ensure_future(rig.output.aclose())
    await until(lambda: len(session._window) == 1)
    closing.cancel()
    with suppress(asyncio.CancelledError):
        await closing
    assert session.connection.lost is not None
    await until(lambda: session.connection._transport is None)


async def test_it_closes_in_order(rig: Rig) -> None:
    """The server is told, so that it need not guess."""
    await rig.output.send(event_batch(range(3)))
    await rig.output.aclose()
    assert rig.server.closed_in_order == 1
