"""Every way in which an endpoint can fail to answer: what is said of it, and that it costs another endpoint nothing."""

import asyncio
import re
from typing import NamedTuple

import pytest
from http_far_side import FarSide, Reply, answer, bomb, close, far_side, reset, says, silence
from pools import POST, pool, refusal, requests_of
from services.process import free_port

from ndagent.core.metrics import Metrics
from ndcollector.traffic.request import Request

_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


_BOMB = bomb(5_000_000)
_BROKEN = "cut short or garbled|answers what is no HTTP"


class Fault(NamedTuple):
    """What the far side does, and what must be said of it."""

    reply: Reply
    says: str


FAULTS = {
    "closes": Fault(lambda _: close, "closed the connection without an answer; look at its log"),
    "resets": Fault(lambda _: reset, r"broke the connection off \(Connection reset by peer\)"),
    "garbage in a chunk's length": Fault(lambda _: says(_CHUNKED + b"zz\r\nxx\r\n"), _BROKEN),
    "endless length of a chunk": Fault(lambda _: says(_CHUNKED + b"f" * 200_000), _BROKEN),
    "chunks cut short": Fault(lambda _: says(_CHUNKED + b"5\r\nab"), "cut short or garbled"),
    "answer cut short": Fault(lambda _: says(answer(200, b"ok", Content_Length="100")), "cut short or garbled"),
    "not HTTP": Fault(lambda _: says(b"SSH-2.0-OpenSSH_9.2\r\n"), "answers what is no HTTP"),
    "endless header": Fault(lambda _: says(b"HTTP/1.1 200 OK\r\nA: " + b"a" * 200_000), "answers what is no HTTP"),
    "never answers": Fault(lambda _: silence, r"no whole answer within 0\.3s \(request_timeout\)"),
    "slow body": Fault(lambda _: says(answer(200, b"{", Content_Length="9"), then=silence), "no whole answer within"),
    "too large": Fault(lambda _: answer(200, b"x" * 3000), "larger than max_answer_bytes"),
    "gzip bomb": Fault(lambda _: _BOMB, "larger than max_answer_bytes"),
    "broken gzip": Fault(lambda _: answer(200, b"no gzip", Content_Encoding="gzip"), "cut short or garbled"),
    "500": Fault(lambda _: answer(500, b"oops"), "answered 500: 'oops'"),
    "503": Fault(lambda _: answer(503), "answered 503"),
    "429": Fault(lambda _: answer(429, b"slow down"), "answered 429: 'slow down'"),
}
each_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@each_fault
async def test_a_fault_is_unavailable_in_words_that_name_the_endpoint(fault: Fault) -> None:
    """And what to do about it; nothing else is ever raised."""
    async with far_side(fault.reply) as bad, pool(bad.url, request_timeout="300ms", max_answer_bytes=2048) as made:
        error = await refusal(made)
        assert error.reason.startswith(bad.url)
        assert re.search(fault.says, error.reason), error.reason


@each_fault
async def test_another_endpoint_gets_the_request_at_once(fault: Fault) -> None:
    """Each at most once; the caller never hears of it."""
    metrics = Metrics()
    async with (
        far_side(fault.reply) as bad,
        far_side(lambda _: answer(200, b"good")) as good,
        pool(bad.url, good.url, metrics=metrics, request_timeout="300ms", max_answer_bytes=2048) as made,
    ):
        found = await made(POST)
        assert (found.body, found.endpoint) == (b"good", good.url)
        assert len(bad.requests) == len(good.requests) == 1
        assert requests_of(metrics, "failed") + requests_of(metrics, "pushed_back") == 1


@pytest.mark.parametrize("balance", ["ordered", "least_outstanding", "round_robin"])
async def test_an_endpoint_that_never_answers_costs_one_request_its_time_not_each(
    balance: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Sends one after the other: in its breaker's window there are never enough failures."""
    async with (
        far_side(lambda _: silence) as hung,
        far_side(lambda _: answer(200)) as good,
        pool(
            hung.url, good.url, balance=balance, request_timeout="200ms", endpoint_breaker={"window": "300ms"}
        ) as made,
    ):
        for _ in range(20):
            await made(POST)
        assert len(good.requests) == 20
        assert len(hung.requests) == 1
    said = [one.message for one in caplog.records if hung.url in one.message]
    assert len(said) == 1
    assert said[0].startswith(f"endpoint {hung.url} is left out for 30s: gave no whole answer within 0.2s")


async def test_an_only_endpoint_that_never_answers_is_tried_on() -> None:
    """There is nobody to leave it out for."""
    replies = [silence, answer(200, b"good")]
    async with far_side(lambda _: replies.pop(0)) as lone, pool(lone.url, request_timeout="200ms") as made:
        assert "no whole answer" in (await refusal(made)).reason
        assert (await made(POST)).body == b"good"


async def test_nobody_listens() -> None:
    """The most common fault of all."""
    async with pool(f"http://127.0.0.1:{free_port()}") as made:
        assert "refuses connections: nothing listens there" in (await refusal(made)).reason


async def test_all_are_down_and_then_one_is_back() -> None:
    """Every endpoint's reason is told; the one that is back gets the next exchange."""
    dead, back = FarSide(port=free_port()), FarSide(port=free_port())
    async with pool(dead.url, back.url, endpoint_breaker={"open_for": "10ms"}) as made:
        for _ in range(5):
            assert str(dead.port) in (await refusal(made)).reason
        assert str(back.port) in (await refusal(made)).reason
        await back.start()
        await asyncio.sleep(0.02)  # open_for
        assert (await made(POST)).endpoint == back.url
        await back.stop()


async def test_a_connection_that_was_closed_while_idle_is_no_failure() -> None:
    """A server may close kept connections whenever it likes: the request is made again on a new one."""
    metrics = Metrics()
    async with far_side() as server, pool(server.url, metrics=metrics) as made:
        await made(POST)
        server.reply = lambda _: close if server.connections == 1 else answer(200, b"again")
        assert (await made(POST)).body == b"again"
        assert requests_of(metrics, "failed") == 0


async def test_a_large_body_that_is_not_read_ends_in_time() -> None:
    """An endpoint that accepts and never reads holds up its request for request_timeout, and its memory is bounded."""

    async def never(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with far_side(act=never) as server, pool(server.url, request_timeout="300ms") as made:
        error = await refusal(made, Request("POST", "", b"x" * 20_000_000))
    assert "no whole answer within 0.3s" in error.reason


async def test_an_answer_before_the_body_was_read_is_heard() -> None:
    """As nginx says 413: the head of the request is enough for it, and it closes on the rest."""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(413, b"too large", Connection="close"))
        await writer.drain()
        while await reader.read(1 << 16):  # it lingers, as servers do lest a RST destroys the answer
            pass

    async with far_side(act=early) as server, pool(server.url) as made:
        found = await made(Request("POST", "", b"x" * 5_000_000))
    assert (found.status, found.body) == (413, b"too large")


async def test_a_redirect_is_not_followed() -> None:
    """No loop is possible, and credentials go nowhere else."""
    async with far_side() as server, pool(server.url) as made:
        server.reply = lambda _: answer(308, Location=server.url + "/in")
        found = await made(POST)
        assert (found.status, len(server.requests)) == (308, 1)


async def test_a_cancelled_request_frees_its_place_and_blames_nobody() -> None:
    """The machine cancels sends at will: at a stop, at a reload, at its own timeout."""
    metrics = Metrics()
    one = {"maximum": 1}
    async with far_side(lambda _: silence) as server, pool(server.url, concurrency=one, metrics=metrics) as made:
        for number in range(1, 6):
            sending = asyncio.ensure_future(made(POST))
            while len(server.requests) < number:
                await asyncio.sleep(0.005)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        server.reply = lambda _: answer(200)
        assert (await made(POST)).status == 200
        assert requests_of(metrics, "withdrawn") == 5
        assert requests_of(metrics, "failed") == 0
