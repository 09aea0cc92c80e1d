"""The `https` output against a server that keeps what it takes: bodies, keys, sizes, refusals, and its living peers."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest
from http_far_side import FarSide, Received, Reply, answer, far_side, silence, until
from pydantic import ValidationError
from services.process import free_port

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.wire.record import EventBatch
from ndcollector.outputs import OutputContext, https
from ndcollector.traffic.encoding import compress, encode
from ndcollector.traffic.refused_events import check_path, refused
from tests.events import event_batch, sequences_in


@asynccontextmanager
async def output(url: str, **settings: Any) -> AsyncIterator[https.HttpsOutput]:
    config = https.Config(url=url, **settings)
    context = OutputContext(state_dir=Path("unused"), metrics=Metrics(), clock=lambda: 1_700_000_000.0)
    made = https.build("siem", config, context)
    try:
        yield made
    finally:
        await made.aclose()


class Keeper:
    """Keeps the events of each request that it takes, unless `refuse` gives another answer."""

    def __init__(self, refuse: Callable[[Received, list[int]], bytes | None] = lambda request, sequences: None) -> None:
        self.refuse = refuse
        self.kept: list[int] = []
        self.sizes: list[int] = []

    def __call__(self, request: Received) -> bytes:
        sequences = sequences_in(request.plain)
        self.sizes.append(len(request.plain))
        refusal = self.refuse(request, sequences)
        if refusal is None:
            self.kept += sequences
        return answer(200) if refusal is None else refusal


def text_batch(lines: Sequence[str], format: str = "cef") -> EventBatch:  # noqa: A002 - EventBatch's name for it
    from array import array

    data = [line.encode() + b"\n" for line in lines]
    batch = event_batch(range(len(lines)))
    return replace(batch, ndjson=b"".join(data), lengths=array("I", map(len, data)), format=format)


async def test_ndjson_goes_out_as_it_is() -> None:
    """With its type, its stream and a key."""
    batch = event_batch(range(5))
    async with far_side() as server, output(server.url + "/in/", compression="none") as made:
        await made.send(batch)
    [got] = server.requests
    assert (got.method, got.path, got.body) == ("POST", "/in/", batch.ndjson)
    assert got.headers["content-type"] == "application/x-ndjson"
    assert got.headers["nd-stream"] == "security_events"
    assert got.headers["idempotency-key"] == "s-0-4-5"
    assert "content-encoding" not in got.headers


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("count", [1, 3, 3000])
async def test_every_encoding_and_compression_holds_the_same_events(compression: str, count: int) -> None:
    """On the loop and in a thread; one event, a few, many."""
    batch = event_batch(range(count))
    expected = [orjson.loads(line) for line in batch.lines()]
    async with far_side() as server:
        for encoding in ("ndjson", "json_array", "msgpack"):
            async with output(server.url, encoding=encoding, compression=compression) as made:
                await made.send(batch)
        assert server.requests[0].plain == batch.ndjson
        assert orjson.loads(server.requests[1].plain) == expected
        assert server.requests[1].headers["content-type"] == "application/json"
        assert msgpack.unpackb(server.requests[2].plain) == expected
        assert server.requests[2].headers["content-type"] == "application/msgpack"
        shown = {one.headers.get("content-encoding", "none") for one in server.requests}
        assert shown == {compression}


async def test_text_formats_are_lines_or_strings() -> None:
    """CEF and its like are no JSON, and must not be called that."""
    lines = ['CEF:0|a|b|1|x|say "hi"|3|', "second, with ümlaut [and] brackets"]
    async with far_side() as server:
        for encoding in ("ndjson", "json_array", "msgpack"):
            async with output(server.url, encoding=encoding, compression="none") as made:
                await made.send(text_batch(lines))
        assert server.requests[0].body.decode().splitlines() == lines
        assert server.requests[0].headers["content-type"] == "text/plain; charset=utf-8"
        assert orjson.loads(server.requests[1].body) == lines
        assert msgpack.unpackb(server.requests[2].body) == lines
        async with output(server.url, encoding="json_array", compression="none") as made:
            await made.send(text_batch(['{"a": 1}'], "flat"))
        assert orjson.loads(server.requests[3].body) == [{"a": 1}]


def test_an_array_survives_what_json_may_hold() -> None:
    """Escaped line feeds, commas and brackets inside of strings."""
    events = [{"m": "a\nb"}, {"m": "],["}, {"m": "\u2028"}, {}]
    lines = [orjson.dumps(event).decode() for event in events]
    assert orjson.loads(encode(text_batch(lines, "ecs"), "json_array")) == events
    assert msgpack.unpackb(encode(text_batch(lines, "ecs"), "msgpack")) == events


def test_gzip_is_the_same_without_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is a matter of speed alone."""
    import gzip
    import zlib

    from ndcollector.traffic import encoding

    text = event_batch(range(1000)).ndjson
    assert gzip.decompress(compress(text, "gzip")) == text
    monkeypatch.setattr(encoding, "gzip_library", zlib)
    assert gzip.decompress(compress(text, "gzip")) == text


async def test_the_key_is_of_these_events_and_stable() -> None:
    """Over retries of the same batch; another one for other events between the same ends, and after a replay."""
    async with far_side() as server, output(server.url) as made:
        server.reply = lambda _: answer(500)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await made.send(event_batch([1, 2, 5, 9]))
        server.reply = lambda _: answer(200)
        await made.send(event_batch([1, 2, 5, 9]))
        await made.send(event_batch([1, 2, 6, 9]))
        await made.send(replace(event_batch([1, 2, 5, 9]), replay=True))
        keys = [one.headers["idempotency-key"] for one in server.requests]
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 3
    assert keys[-1] == keys[0] + "-replay-1700000000"


async def test_other_statuses_may_be_success_or_none() -> None:
    """`success` replaces 2xx; what is not among it waits for a person, however good it looks."""
    async with far_side(lambda _: answer(202)) as server:
        async with output(server.url) as made:
            await made.send(event_batch([1]))
        async with output(server.url, success=[200]) as made:
            with pytest.raises(Unavailable, match="answered 202; this status is not among `success`"):
                await made.send(event_batch([1]))
        server.reply = lambda _: answer(409)
        async with output(server.url, success=[200, 409]) as made:
            await made.send(event_batch([1]))


async def test_207_is_success_only_where_its_answer_is_read() -> None:
    """Multi-Status says that some were taken and some were not."""
    async with far_side(lambda _: answer(207, b'{"rejected": [1]}')) as server:
        async with output(server.url) as made:
            with pytest.raises(Unavailable, match=r"answered 207.*inside: set rejected_field"):
                await made.send(event_batch(range(3)))
        async with output(server.url, rejected_field="rejected") as made:
            with pytest.raises(Rejected) as caught:
                await made.send(event_batch(range(3)))
            assert caught.value.indexes == [1]
        async with output(server.url, success=[207]) as made:
            await made.send(event_batch(range(3)))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Rejected), (422, Rejected), (401, Unavailable), (403, Unavailable), (404, Unavailable), (302, Unavailable),
     (409, Unavailable), (410, Unavailable), (415, Unavailable), (429, Unavailable), (500, Unavailable)],
)  # fmt: skip
async def test_what_a_status_means(status: int, kind: type[Exception]) -> None:
    """Never, a person must act, or later."""
    async with far_side(lambda _: answer(status, b"why")) as server, output(server.url) as made:
        with pytest.raises(kind, match=f"answered {status}"):
            await made.send(event_batch(range(3)))


async def test_409_is_a_refusal_where_no_key_was_sent() -> None:
    """Only who was shown a key can mean by it that the same events are still being worked on."""
    async with far_side(lambda _: answer(409)) as server, output(server.url, idempotency_header=None) as made:
        with pytest.raises(Rejected):
            await made.send(event_batch(range(3)))


async def test_a_receiver_that_cannot_decompress_gets_plain_bodies(caplog: pytest.LogCaptureFixture) -> None:
    """It costs one request and a warning that says what to write, not ten thousand dead letters."""

    def plain_only(request: Received) -> bytes:
        return answer(400 if "content-encoding" in request.headers else 200)

    async with far_side(plain_only) as server, output(server.url) as made:
        for number in range(3):
            await made.send(event_batch([number]))
        assert ["content-encoding" in one.headers for one in server.requests] == [True, False, False, False]
    assert "set compression: none" in caplog.text


async def test_a_receiver_that_did_decompress_is_believed() -> None:
    """Once a compressed body was taken, a refusal is about the events."""
    async with far_side() as server, output(server.url) as made:
        await made.send(event_batch([1]))
        server.reply = lambda _: answer(400)
        with pytest.raises(Rejected):
            await made.send(event_batch([2, 3]))
        assert len(server.requests) == 2


async def test_413_cuts_the_batch_and_is_remembered() -> None:
    """Nothing is sent twice but what was refused, and the next batches are cut before."""
    most = 40_000

    def too_large(request: Received, _sequences: list[int]) -> bytes | None:
        return answer(413) if len(request.plain) > most else None

    keeper = Keeper(too_large)
    batches = [event_batch(range(start, start + 3000)) for start in range(0, 9000, 3000)]
    async with far_side(keeper) as server, output(server.url) as made:
        for batch in batches:
            await made.send(batch)
        refused_sizes = [size for size in keeper.sizes if size > most]
        assert keeper.kept == list(range(9000))
        assert len(refused_sizes) <= 3  # of the first batch
        assert len({one.headers["idempotency-key"] for one in server.requests}) == len(server.requests)


async def test_one_event_that_is_too_large_is_named() -> None:
    """Its neighbours arrive, once each."""

    def too_large(request: Received, sequences: list[int]) -> bytes | None:
        return answer(413) if 5 in sequences else None

    keeper = Keeper(too_large)
    async with far_side(keeper) as server, output(server.url) as made:
        batch = event_batch(range(10))
        with pytest.raises(Rejected) as caught:
            await made.send(batch)
        assert caught.value.indexes == [5]
        await made.send(batch.select([0, 1, 2, 3, 4, 6, 7, 8, 9]))
    assert sorted(keeper.kept) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_batch_beyond_max_body_bytes_goes_out_in_parts_and_each_once() -> None:
    """Also when a part fails in between: the retry sends what is missing."""
    fail_at = 3

    def sometimes(_request: Received, _sequences: list[int]) -> bytes | None:
        return answer(500) if len(keeper.sizes) == fail_at else None

    keeper = Keeper(sometimes)
    batch = event_batch(range(500))
    async with far_side(keeper) as server, output(server.url, max_body_bytes=4096) as made:
        with pytest.raises(Unavailable):
            await made.send(batch)
        assert 0 < len(keeper.kept) < 500
        await made.send(batch)
    assert keeper.kept == list(range(500))
    assert max(keeper.sizes) <= 4096


async def test_the_refused_events_alone_are_refused() -> None:
    """A 2xx that names some: the others were taken, and are not sent again with what the machine tries next."""
    keeper = Keeper()

    def reply(request: Received) -> bytes:
        sequences = sequences_in(request.plain)
        bad = [index for index, sequence in enumerate(sequences) if sequence in (3, 7)]
        keeper.kept += [sequence for sequence in sequences if sequence not in (3, 7)]
        return answer(200, orjson.dumps({"errors": [{"index": index, "why": "no"} for index in bad]}))

    async with far_side(reply) as server, output(server.url, rejected_field="errors[].index") as made:
        batch = event_batch(range(10))
        with pytest.raises(Rejected) as caught:
            await made.send(batch)
        assert caught.value.indexes == [3, 7]
        assert "why" in (caught.value.response or "")
        await made.send(batch.select([0, 1, 2, 4, 5, 6, 8, 9]))
        assert len(server.requests) == 1
        await made.send(replace(batch.select([0, 1]), replay=True))
        assert len(server.requests) == 2  # an operator asked for these again
    assert keeper.kept == [0, 1, 2, 4, 5, 6, 8, 9, 0, 1]


async def test_a_4xx_that_names_some_took_none() -> None:
    """The others are sent again; a refusal in other words is bisected."""
    async with (
        far_side(lambda _: answer(422, b'{"rejected": [1]}')) as server,
        output(server.url, rejected_field="rejected", compression="none") as made,
    ):
        with pytest.raises(Rejected) as caught:
            await made.send(event_batch(range(3)))
        assert caught.value.indexes == [1]
        server.reply = lambda _: answer(200)
        await made.send(event_batch([0, 2]))
        assert sequences_in(server.requests[-1].plain) == [0, 2]
        server.reply = lambda _: answer(400, b"<html>")
        with pytest.raises(Rejected) as caught:
            await made.send(event_batch(range(3)))
        assert caught.value.indexes is None


@pytest.mark.parametrize(
    "body", [b"<html>", b'{"rejected": "all"}', b'{"rejected": [5]}', b'{"rejected": [-1]}', b'{"rejected": [true]}']
)
async def test_an_answer_that_names_nothing_sensible_is_unavailable(body: bytes) -> None:
    """Neither taken for success nor for a reason to bury anything."""
    async with far_side(lambda _: answer(200, body)) as server, output(server.url, rejected_field="rejected") as made:
        with pytest.raises(Unavailable, match="correct rejected_field"):
            await made.send(event_batch(range(5)))


def test_paths_into_answers() -> None:
    """Lists of positions, lists of objects, deeper ones; what is not there refuses nothing."""
    found = b'{"a": {"b": [{"at": 4}, {"at": 1}, {"x": 0}]}, "list": [2, 2, 0], "one": 3}'
    assert refused(found, "a.b[].at", count=5) == [1, 4]
    assert refused(found, "list", count=5) == [0, 2]
    assert refused(found, "one", count=5) == [3]
    assert refused(found, "missing.too[].x", count=5) == []
    with pytest.raises(ValueError, match="no list at one"):
        refused(found, "one[].x", count=5)
    for path in ("", "a..b", "a[0]", "[]", "a[]b"):
        with pytest.raises(ValueError, match="is no path into an answer"):
            check_path(path)


class Chain:
    """The output behind the machine's delivery chain, with real time and short waits, and its dead letters."""

    def __init__(self, directory: Path, url: str, name: str = "siem", **settings: Any) -> None:
        quick = {"initial": "10ms", "maximum": "20ms"}
        breaker = {"open_for": "20ms"}
        config = https.Config(url=url, retry=quick, breaker=breaker, endpoint_breaker=breaker, **settings)
        clock = asyncio.get_running_loop().time
        self.metrics = Metrics()
        context = OutputContext(state_dir=directory, metrics=self.metrics, clock=lambda: 1_700_000_000.0)
        more: dict[str, Any] = {"name": name, "config": config, "clock": clock, "sleep": asyncio.sleep}
        chain = wrap(https.build(name, config, context), metrics=self.metrics, random=random.random, **more)
        letters = DeadLetters(directory, output=name, max_bytes=2**30, clock=lambda: 0.0)
        self.path = letters.path
        self.delivery = Delivery(chain, dead_letters=letters, random=random.random, **more)

    def buried(self) -> list[int]:
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        return [orjson.loads(line)["sequence"] for line in lines]


async def test_one_poisonous_event_of_ten_thousand(tmp_path: Path) -> None:
    """It alone becomes a dead letter, and every other event arrives once."""
    keeper = Keeper(lambda _request, sequences: answer(400, b"bad event") if 7321 in sequences else None)
    async with far_side(keeper) as server:
        chain = Chain(tmp_path, server.url)
        await chain.delivery.deliver(event_batch(range(10_000)))
        await chain.delivery.aclose()
    assert chain.buried() == [7321]
    assert sorted(keeper.kept) == [n for n in range(10_000) if n != 7321]
    assert len(server.requests) < 40


async def test_poison_in_a_batch_that_goes_out_in_parts(tmp_path: Path) -> None:
    """What was taken before the refusal is not sent again while the guilty one is looked for."""
    keeper = Keeper(lambda _request, sequences: answer(400) if 321 in sequences else None)
    async with far_side(keeper) as server:
        chain = Chain(tmp_path, server.url, max_body_bytes=4096)
        await chain.delivery.deliver(event_batch(range(500)))
        await chain.delivery.aclose()
    assert chain.buried() == [321]
    assert sorted(keeper.kept) == [n for n in range(500) if n != 321]


@pytest.mark.parametrize("dead", ["silent", "refusing", "absent", "asking for a pause"])
async def test_a_dead_output_costs_the_living_one_nothing(dead: str, tmp_path: Path) -> None:
    """All is delivered to the living one while the other waits, and to the other once it is back."""
    replies: dict[str, Reply] = {
        "silent": lambda _: silence,
        "refusing": lambda _: answer(503),
        "absent": lambda _: answer(200),
        "asking for a pause": lambda _: answer(429, Retry_After="1"),
    }
    living, ill = Keeper(), Keeper()
    port = free_port()
    sick = FarSide(reply=replies[dead], port=port)
    if dead != "absent":
        await sick.start()
    batches = [event_batch(range(start, start + 50)) for start in range(0, 500, 50)]
    async with far_side(living) as well:
        good = Chain(tmp_path, well.url, "good")
        bad = Chain(tmp_path, sick.url, "bad", request_timeout="200ms")
        waiting = [asyncio.ensure_future(bad.delivery.deliver(batch)) for batch in batches]
        if dead != "absent":
            await until(lambda: sick.requests)
        for batch in batches:
            await good.delivery.deliver(batch)
        assert living.kept == list(range(500))
        assert not any(one.done() for one in waiting)
        sick.reply = ill
        if dead == "absent":
            await sick.start()
        await asyncio.gather(*waiting)
        assert sorted(set(ill.kept)) == list(range(500))
        assert good.buried() == bad.buried() == []
        for chain in (good, bad):
            await chain.delivery.aclose()
    await sick.stop()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rejected_field": "a[0]"}, "is no path into an answer"),
        ({"success": []}, "at least 1 item"),
        ({"encoding": "xml"}, "ndjson"),
        ({"max_body_bytes": 1}, "greater than or equal to 1024"),
    ],
)
def test_what_check_refuses(settings: dict[str, Any], text: str) -> None:
    """At the start, by name."""
    with pytest.raises(ValidationError, match=text):
        https.Config(url="https://a", **settings)
