"""The `otlp` output against a receiver that reads with OpenTelemetry's own code: what each of its answers does."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from otlp_receiver import PROTOBUF, STATUS, OtlpReceiver
from pydantic import ValidationError

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import LONGEST_RETRY_AFTER_SECONDS, Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndcollector.outputs import OutputContext, otlp
from tests.events import SwiftTime, event_batch


def output(port: int, **settings: Any) -> otlp.OtlpOutput:
    context = OutputContext(state_dir=Path("/nowhere"), metrics=Metrics(), clock=lambda: 0.0)
    return otlp.build("lake", otlp.Config(url=f"http://127.0.0.1:{port}", **settings), context)


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    made = OtlpReceiver()
    await made.start()
    yield made
    await made.stop()


@asynccontextmanager
async def delivery(directory: Path, port: int, **settings: Any) -> AsyncIterator[tuple[Delivery, SwiftTime]]:
    """As the machine has it: retry, breaker, dead letters, on a clock of its own."""
    settings["endpoint_breaker"] = {"failures": 1_000_000}  # its pauses are in real time
    time, plug = SwiftTime(), output(port, **settings)
    config = otlp.Config(url=f"http://127.0.0.1:{port}", **settings)
    plumbing: dict[str, Any] = {"clock": time.clock, "sleep": time.sleep, "random": lambda: 0.5}
    letters = DeadLetters(directory, output="lake", max_bytes=2**20, clock=lambda: 0.0)
    chain = wrap(plug, name="lake", config=config, metrics=Metrics(), **plumbing)
    made = Delivery(chain, name="lake", config=config, dead_letters=letters, **plumbing)
    yield made, time
    await made.aclose()


def letters(directory: Path) -> list[dict[str, Any]]:
    path = directory / "lake.ndjson"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.mark.parametrize("compression", ["gzip", "none"])
async def test_a_batch_is_one_request_in_the_protocols_form(receiver: OtlpReceiver, compression: str) -> None:
    """Binary protobuf, compressed or not."""
    plug = output(receiver.port, compression=compression)
    await plug.send(event_batch(range(100)))
    await plug.aclose()
    (headers,) = receiver.headers
    assert headers["content-type"] == headers["accept"] == PROTOBUF
    assert headers.get("content-encoding", "none") == compression
    assert receiver.kept == list(range(100))


async def test_a_poisonous_event_costs_itself(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """400 says that something in the request is bad: halves find what, and the letter has the receiver's words."""
    receiver.script = lambda sequences: "NEVER" if 77 in sequences else "OK"
    async with delivery(tmp_path, receiver.port) as (made, _):
        assert await made.deliver(event_batch(range(500))) == [77]
    assert sorted(receiver.kept) == [n for n in range(500) if n != 77]
    (letter,) = letters(tmp_path)
    assert letter["sequence"] == 77
    assert "not for me!" in letter["reason"]
    assert letter["response"] == "400\nnot for me!"


async def test_a_request_that_is_too_large_is_halved(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """413: "must not be retried" as it is, and nothing of it is bad."""
    receiver.script = lambda sequences: "TOO LARGE" if len(sequences) > 30 else "OK"
    async with delivery(tmp_path, receiver.port) as (made, _):
        assert await made.deliver(event_batch(range(100))) == []
    assert receiver.kept == list(range(100))


async def test_a_partial_success_loses_nothing_and_is_not_sent_again(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """The receiver dropped three and does not say which: all are kept, and the letters say how it stands."""
    asked = []
    receiver.script = lambda sequences: asked.append(len(sequences)) or "PARTIAL 3"  # type: ignore[func-returns-value]
    async with delivery(tmp_path, receiver.port) as (made, _):
        assert await made.deliver(event_batch(range(40))) == list(range(40))
    assert asked == [40]
    found = letters(tmp_path)
    assert [letter["sequence"] for letter in found] == list(range(40))
    assert "dropped 3 of 40 records: too old; it does not say which" in found[0]["reason"]


async def test_a_partial_success_can_be_bisected(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """For receivers that de-duplicate: only the guilty are buried, the others arrive (some of them repeatedly)."""
    taken: set[int] = set()

    def script(sequences: list[int]) -> str:
        taken.update(set(sequences) - {5, 31})
        guilty = len({5, 31} & set(sequences))
        return f"PARTIAL {guilty}" if guilty else "OK"

    receiver.script = script
    async with delivery(tmp_path, receiver.port, partial_success="bisect") as (made, _):
        assert sorted(await made.deliver(event_batch(range(40)))) == [5, 31]
    assert taken == set(range(40)) - {5, 31}


async def test_all_of_a_request_dropped_is_no_riddle(receiver: OtlpReceiver) -> None:
    """The events are known then, and none of them arrived."""
    receiver.script = lambda sequences: f"PARTIAL {len(sequences)}"
    plug = output(receiver.port)
    with pytest.raises(Rejected, match=r"dropped 4 of 4 records: too old$") as refusal:
        await plug.send(event_batch(range(4)))
    await plug.aclose()
    assert list(refusal.value.indexes or ()) == [0, 1, 2, 3]


async def test_a_warning_is_said_once_and_costs_nothing(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """partial_success with nothing rejected carries advice."""
    body = b"\x0a\x09\x12\x07slow it"
    receiver.answer = lambda: web.Response(body=body, content_type=PROTOBUF)
    plug = output(receiver.port)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await plug.send(event_batch(range(2)))
    await plug.aclose()
    assert [record.message for record in caplog.records if "slow it" in record.message] == [
        f"http://127.0.0.1:{receiver.port} took all events and warns: slow it"
    ]


@pytest.mark.parametrize("status", [429, 502, 503, 504, 500])
async def test_statuses_that_are_sent_again(receiver: OtlpReceiver, status: int) -> None:
    """Those of the specification, and 500, whose cause need not be the events."""
    receiver.answer = lambda: web.Response(status=status, body=STATUS, headers={"Retry-After": "7"})
    plug = output(receiver.port)
    with pytest.raises(Unavailable, match=str(status)) as error:
        await plug.send(event_batch(range(2)))
    await plug.aclose()
    assert 6 < (error.value.retry_after_seconds or 0) <= 7


async def test_an_absurd_retry_after_is_bounded(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """Three years are a mistake, and nobody would be there to correct it."""
    receiver.script = lambda _: "PAUSE 99999999"
    async with delivery(tmp_path, receiver.port) as (made, time):
        delivering = asyncio.ensure_future(made.deliver(event_batch(range(3))))
        async with asyncio.timeout(20):
            while not any(seconds > 60 for seconds in time.slept):  # its own waits are shorter
                await asyncio.sleep(0.005)
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
    assert max(time.slept) <= LONGEST_RETRY_AFTER_SECONDS


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_credentials_refused_then_mended(receiver: OtlpReceiver, tmp_path: Path, status: int) -> None:
    """A person must act; the events are still there when they have."""
    refusals = iter(range(5))

    def answer() -> web.Response:
        receiver.kept.clear()  # it was not taken
        if next(refusals, None) is None:
            receiver.answer = None
        return web.Response(status=status)

    receiver.answer = answer
    async with delivery(tmp_path, receiver.port) as (made, _):
        assert await made.deliver(event_batch(range(3))) == []
    assert receiver.kept == [0, 1, 2]


async def test_an_answer_that_never_comes(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """Timed out, and sent again; the protocol cannot tell whether the first was taken."""
    answers = iter(["silence"])
    receiver.script = lambda _: next(answers, "OK")
    async with delivery(tmp_path, receiver.port, request_timeout="200ms", timeout="500ms") as (made, _):
        await made.deliver(event_batch(range(3)))
    assert receiver.kept == [0, 1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(text="<html>please log in</html>", content_type="text/html"),
        lambda: web.Response(body=b"\x0a\x7f", content_type=PROTOBUF),
        lambda: web.Response(text="[]", content_type="application/json"),
        lambda: web.Response(body=b"\r\n<!DOCTYPE html><title>Log in</title>", content_type="application/octet-stream"),
        lambda: web.Response(text='{"error": "quota exceeded"}', content_type="application/json"),
        lambda: web.Response(text='{"error": "no such tenant"}', content_type="text/plain"),
        lambda: web.Response(
            text='{"partialSuccess": {"rejectedLogRecords": "many"}}', content_type="application/json"
        ),
    ],
    ids=["a portal", "cut off", "no object", "a page by another name", "an error inside", "one of text", "no number"],
)
async def test_an_answer_that_is_none_is_not_taken_for_success(
    receiver: OtlpReceiver, answer: Callable[[], web.Response]
) -> None:
    """A captive portal says 200 to everything."""
    receiver.answer = answer
    plug = output(receiver.port)
    with pytest.raises(Unavailable, match="no OTLP answer; check its URL"):
        await plug.send(event_batch(range(2)))
    await plug.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        web.Response,
        lambda: web.Response(text="{}", content_type="application/json"),
        lambda: web.Response(text="ok", content_type="text/plain"),
        lambda: web.Response(text="ok", content_type="text/html"),
        lambda: web.Response(text='{"text": "Success", "code": 0, "errors": []}', content_type="application/json"),
    ],
    ids=["empty", "JSON", "in words", "in words that some framework calls HTML", "in JSON of its own"],
)
async def test_receivers_that_are_terse_are_believed(
    receiver: OtlpReceiver, answer: Callable[[], web.Response]
) -> None:
    """Many a vendor's endpoint answers a plain 200."""
    receiver.answer = answer
    plug = output(receiver.port)
    await plug.send(event_batch(range(2)))
    await plug.aclose()


@pytest.mark.parametrize("kind", [PROTOBUF, "application/octet-stream", "text/html"])
@pytest.mark.parametrize("said", [b"", b"x" * 56, b"x" * 119], ids=["short", "as long as <", "as long as {"])
async def test_a_partial_success_is_one_whatever_it_is_called_and_looks_like(
    receiver: OtlpReceiver, kind: str, said: bytes
) -> None:
    """A proxy may name it as it likes, and the length of its text may be the code of a bracket."""
    partial = b"\x08\x01" + (b"\x12%c%b" % (len(said), said) if said else b"")  # rejected_log_records, error_message
    receiver.answer = lambda: web.Response(body=b"\x0a%c%b" % (len(partial), partial), content_type=kind)
    plug = output(receiver.port)
    with pytest.raises(Rejected, match="dropped 1 of 3 records"):
        await plug.send(event_batch(range(3)))
    await plug.aclose()


@pytest.mark.parametrize("count", ['"2"', "2", "2.0"])
@pytest.mark.parametrize(
    "names", [("partialSuccess", "rejectedLogRecords"), ("partial_success", "rejected_log_records")]
)
async def test_partial_success_in_json_however_it_is_written(
    receiver: OtlpReceiver, names: tuple[str, str], count: str
) -> None:
    """protobuf's JSON has two spellings of a name and three of a number; each says that events were dropped."""
    receiver.answer = lambda: web.Response(
        text='{"%s": {"%s": %s}}' % (*names, count), content_type="application/json"  # noqa: UP031 - full of braces
    )
    plug = output(receiver.port)
    with pytest.raises(Rejected, match="dropped 2 of 3 records"):
        await plug.send(event_batch(range(3)))
    await plug.aclose()


async def test_sends_at_the_same_time_do_not_mix(receiver: OtlpReceiver) -> None:
    """Encoding runs in threads that share what they remember."""
    plug = output(receiver.port)
    await asyncio.gather(*(plug.send(event_batch(range(n, n + 50))) for n in range(0, 1000, 50)))
    await plug.aclose()
    assert sorted(receiver.kept) == list(range(1000))


def test_the_path_is_written_once() -> None:
    """https://host/v1/logs/v1/logs is a 404 that takes an hour to find."""
    with pytest.raises(ValidationError, match="leave /v1/logs out"):
        otlp.Config(url="https://otel.example.net:4318/v1/logs")
