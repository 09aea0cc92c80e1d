"""Formats at the far end of the chain: in order, one bad event alone refused; and text in files over a crash."""

import asyncio
from array import array
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from routing.routed import syslog

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.decoding import INLINE_BYTES, Decoding
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.core.settings import OutputConfig
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import EventBatch
from ndcollector.formats import FormatConfig, formatter
from ndcollector.outputs.file import Config, FileOutput
from ndcollector.routing.config import RoutedConfig
from ndcollector.routing.formatted import Formatted
from ndcollector.routing.routes import Routes, originals
from tests.events import SwiftTime


class Kept:
    """An output that keeps what it is sent."""

    def __init__(self) -> None:
        self.batches: list[EventBatch] = []

    async def send(self, events: EventBatch) -> None:
        self.batches.append(events)

    async def sync(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


@pytest.fixture
def threads() -> Iterator[Executor]:
    """A few."""
    with ThreadPoolExecutor(4) as executor:
        yield executor


def numbered(first: int, count: int, *, padding: int = 0) -> EventBatch:
    """Messages that say their sequence."""
    return syslog(*[b"<13>h a: %d%b" % (n, b"." * padding) for n in range(first, first + count)], sequence=first)


async def test_sends_start_in_the_order_of_their_calls(threads: Executor) -> None:
    """A large batch that takes a thread is not overtaken by the small ones behind it."""
    far = Kept()
    form = formatter(FormatConfig(name="cef"))
    assert form is not None
    output = Formatted(far, form, threads)
    sizes = [2000, 1, 300, 1, 1, 500]
    batches = [numbered(1000 * n, size, padding=20) for n, size in enumerate(sizes)]
    assert len(batches[0].ndjson) > INLINE_BYTES > len(batches[1].ndjson)
    await asyncio.gather(*(output.send(batch) for batch in batches))
    assert [batch.sequences[0] for batch in far.batches] == [0, 1000, 2000, 3000, 4000, 5000]
    assert all(line.startswith(b"CEF:0|") for batch in far.batches for line in batch.lines())


async def test_an_event_that_cannot_be_formatted_is_buried_alone_as_an_event(tmp_path: Path, threads: Executor) -> None:
    """A bug in a format costs one event's form, not the output; the letter is the event and not its line."""

    def form(events: EventBatch) -> EventBatch:
        if b": 5" in events.ndjson or b'"5"' in events.ndjson:
            raise ZeroDivisionError("a bug")
        lines = [b"x\n" for _ in events.lines()]
        return replace(events, ndjson=b"".join(lines), lengths=array("I", map(len, lines)), format="x")

    far, time, config = Kept(), SwiftTime(), OutputConfig(type="test")
    letters = DeadLetters(tmp_path, output="o", max_bytes=1 << 20, clock=lambda: 0.0)
    plumbing = {"clock": time.clock, "sleep": time.sleep, "random": lambda: 0.5}
    chain = wrap(Formatted(far, form, threads), name="o", config=config, metrics=Metrics(), **plumbing)  # type: ignore[arg-type]
    delivery = Delivery(chain, name="o", config=config, dead_letters=letters, **plumbing)  # type: ignore[arg-type]
    assert await delivery.deliver(numbered(0, 10)) == [5]
    assert [n for batch in far.batches for n in batch.sequences] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert '"event":{"@timestamp":' in letters.path.read_text()
    assert "format_failed: ZeroDivisionError: a bug" in letters.path.read_text()
    with pytest.raises(Rejected):
        await Formatted(far, form, threads).send(numbered(5, 1))


def test_only_outputs_that_need_originals_get_them() -> None:
    """What decode.keep_original withholds is given to nobody else."""
    decoding = Decoding(make_decoder(DecodeSettings("c", keep_original="never")), metrics=Metrics(), ring_bytes=1)
    outputs = {"raw": RoutedConfig(type="x", format="raw"), "cef": RoutedConfig(type="x", format="cef"),
               "raw2": RoutedConfig(type="x", format="raw")}  # fmt: skip
    own = originals(outputs, DecodeSettings("c", keep_original="never"), decoding)
    assert own.keys() == {"raw", "raw2"}
    assert own["raw"] is own["raw2"]
    assert own["raw"] is not decoding
    assert originals(outputs, DecodeSettings("c", keep_original="always"), decoding) == {}
    for one in (decoding, own["raw"]):
        one.close()


async def test_an_output_with_the_default_format_is_not_wrapped() -> None:
    """It pays nothing."""
    far, routes = Kept(), Routes()
    build = routes.formatting(lambda _name, _config: far)
    assert build("o", RoutedConfig(type="x")) is far
    assert isinstance(build("o", RoutedConfig(type="x", format="leef")), Formatted)
    routes.close()


async def test_a_large_batch_is_routed_in_a_thread_and_a_small_one_at_once() -> None:
    """The same result either way."""
    routes = Routes()
    route = routes.route("o", RoutedConfig(type="x", where="message regex '[05]$'"))
    assert route is not None
    for count in (10, 2000):
        found = await route(numbered(0, count))
        assert list(found.events.sequences) == [n for n in range(count) if n % 5 == 0]
        assert len(found.filtered) == count - len(found.events)
    assert routes.route("o", RoutedConfig(type="x")) is None
    assert routes.route("o", OutputConfig(type="x")) is None
    routes.close()


# ---- text in files


def text_of(form: str, events: EventBatch) -> EventBatch:
    found = formatter(FormatConfig(name=form))
    assert found is not None
    return found(events)


@pytest.mark.parametrize("form", ["cef", "leef", "raw", "rfc5424"])
async def test_a_half_line_of_text_is_cut_and_its_event_comes_whole(tmp_path: Path, form: str) -> None:
    """A crash amid a write; what was not confirmed is written again, so at least once."""
    live = tmp_path / "x.log"
    first, again = text_of(form, numbered(0, 4)), text_of(form, numbered(3, 4))
    live.write_bytes(first.ndjson[:-3])
    output = FileOutput("x", Config(path=live, format=form), clock=lambda: 0.0)
    await output.send(again)
    await output.send(again)  # a retry in the life of the file is not written again
    assert live.read_bytes() == b"".join(first.lines()[:3]) + again.ndjson
    await output.aclose()
    later = FileOutput("x", Config(path=live, format=form), clock=lambda: 0.0)
    await later.send(text_of(form, numbered(5, 3)))
    lines = live.read_bytes().splitlines(keepends=True)
    assert {*first.lines(), *again.lines(), *text_of(form, numbered(7, 1)).lines()} == set(lines)
    await later.aclose()


async def test_a_half_raw_message_that_could_be_anybodys_is_ended_and_not_cut(tmp_path: Path) -> None:
    """Messages without a PRI may begin with anything, and so may another program's file."""
    live = tmp_path / "x.log"
    live.write_bytes(b"whole\nhalf a li")
    output = FileOutput("x", Config(path=live, format="raw"), clock=lambda: 0.0)
    await output.send(text_of("raw", numbered(0, 1)))
    assert live.read_bytes() == b"whole\nhalf a li\n<13>h a: 0\n"
    await output.aclose()


async def test_a_foreign_file_is_not_cut_for_a_text_format(tmp_path: Path) -> None:
    """Somebody's notes at the path of a CEF file."""
    live = tmp_path / "x.log"
    live.write_bytes(b"notes\nimportant")
    output = FileOutput("x", Config(path=live, format="cef"), clock=lambda: 0.0)
    with pytest.raises(Unavailable, match="move the file away"):
        await output.send(text_of("cef", numbered(0, 1)))
    assert live.read_bytes() == b"notes\nimportant"
    await output.aclose()
