"""The netflow input over real sockets: flows become durable events, and whatever does not is a number."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from netflow_datagrams import NOON, ipfix, pack_set, template, v5, v5_flow, v9
from waiting import until

from ndagent import __version__
from ndagent.core.flow_intake import FlowInput
from ndagent.core.metrics import Metrics
from ndagent.inputs import HostFacts, InputContext
from ndagent.inputs import netflow as agent_plug
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.netflow.decoder import FlowDecoder
from ndagent.wire.netflow.lines import Written
from ndagent.wire.own_lines import OwnDecoder
from ndagent.wire.record import Batch, pack_body
from ndcollector.inputs.netflow import Config

SHAPE = pack_set(2, template(256, [(8, 4), (1, 4)]))
FLOW = pack_set(256, bytes.fromhex("0a000001 00000005"))


class Site:
    """An input at a port of its own, and a spool that a test may block."""

    def __init__(self, state_dir: Path, **settings: object) -> None:
        self.metrics = Metrics()
        self.batches: list[Batch] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.now = float(NOON)
        config = Config.model_validate({"listen": ["127.0.0.1:0"], "sockets": 1, **settings})
        self.input = FlowInput(
            "netflow", config, state_dir=state_dir, metrics=self.metrics, clock=lambda: self.now, monotonic=lambda: 1.0
        )

    async def accept(self, batch: Batch) -> None:
        await self.gate.wait()
        self.batches.append(batch)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Site"]:
        await self.input.start()
        self.address = self.input.addresses[0]
        task = asyncio.create_task(self.input.run(self.accept))
        await asyncio.sleep(0)  # it has begun
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def send(self, *datagrams: bytes, source: str = "127.0.0.1") -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            for data in datagrams:
                sender.sendto(data, self.address)

    @property
    def durable(self) -> int:
        return sum(batch.count for batch in self.batches)

    def events(self) -> list[dict[str, Any]]:
        """What outputs would get, through the collector's decoder."""
        decoder = make_decoder(DecodeSettings(observer_name="c"))
        found = []
        for number, batch in enumerate(self.batches):
            assert batch.format == "ecs"
            body = b"".join(pack_body(batch))
            place = {"stream": batch.stream, "spool_id": "s", "sequence": number * 10_000}
            events = decoder.decode(body, **place, received_at_ns=batch.received_at_ns)
            found += [orjson.loads(line) for line in events.lines()]
        return found

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"input": "netflow", **labels})

    def dropped(self, reason: str) -> float | None:
        return self.metric("nd_input_dropped_events_total", reason=reason)


async def test_flows_of_three_versions_become_events_of_their_exporters(tmp_path: Path) -> None:
    """Ports change, templates belong to addresses."""
    async with Site(tmp_path).running() as site:
        site.send(v5(v5_flow(), v5_flow()), source="127.0.0.2")
        site.send(v9(pack_set(0, template(256, [(8, 4), (1, 4)]))), source="127.0.0.3")
        site.send(v9(FLOW, sequence=1), source="127.0.0.3")
        site.send(ipfix(SHAPE, FLOW), source="127.0.0.4")
        await until(lambda: site.durable == 4)
    events = site.events()
    assert sorted((event["observer"]["ip"], event["netflow"]["version"]) for event in events) == [
        ("127.0.0.2", 5), ("127.0.0.2", 5), ("127.0.0.3", 9), ("127.0.0.4", 10),
    ]  # fmt: skip
    assert len({event["event"]["id"] for event in events}) == 4
    assert site.metric("nd_input_received_events_total") == 4
    assert site.metric("nd_input_templates") == 2


async def test_a_bug_of_the_decoder_costs_one_datagram_and_is_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those behind it in the same read are events."""
    site = Site(tmp_path)
    true_feed = FlowDecoder.feed

    def feed(decoder: FlowDecoder, exporter: str, data: bytes, **facts: Any) -> Iterator[Written]:
        if data == b"evil":
            raise ZeroDivisionError("a bug")
        return true_feed(decoder, exporter, data, **facts)

    monkeypatch.setattr(FlowDecoder, "feed", feed)
    async with site.running():
        site.send(v5(v5_flow()), b"evil", v5(v5_flow(), v5_flow()))  # the loop had no turn: one read
        await until(lambda: site.durable == 3)
    assert site.dropped("decoder_failed") == 1
    assert site.metric("nd_input_received_events_total") == 4
    (said,) = (record for record in caplog.records if "6576696c" in record.message)
    assert said.exc_info is not None


async def test_what_is_lost_is_told_by_its_reason(tmp_path: Path) -> None:
    """Malformed, without a template at the stop, missing in the numbering, late; received = durable + dropped."""
    async with Site(tmp_path).running() as site:
        site.send(b"gibberish", v5(v5_flow(), v5_flow())[:-1], ipfix(pack_set(999, bytes(8)), sequence=50))
        site.send(ipfix(SHAPE, FLOW, sequence=60), ipfix(FLOW, sequence=70), ipfix(FLOW, sequence=65))
        await until(lambda: site.durable == 4)
    assert (site.dropped("malformed"), site.dropped("no_template")) == (2, 1)
    assert site.metric("nd_input_received_events_total") == 4 + 3
    assert site.metric("nd_input_sequence_missing_total", unit="records") == 9
    assert site.metric("nd_input_sequence_late_total", unit="records") == 1
    assert site.metric("nd_input_sequence_missing_total", unit="flows") == 0


async def test_two_exporters_at_one_address_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each announces its own shape for the same number: what that may do to records is said, once, and counted."""
    other = pack_set(2, template(256, [(1, 4), (8, 4)]))
    async with Site(tmp_path).running() as site:
        site.send(*[ipfix(SHAPE), ipfix(other)] * 3, ipfix(SHAPE, FLOW))
        await until(lambda: site.durable == 1)
    assert site.metric("nd_input_templates_redefined_total") == 6
    said = [one.getMessage() for one in caplog.records if "changed their shape" in one.getMessage()]
    assert len(said) == 1
    assert "127.0.0.1, domain 7, template 256" in said[0]


async def test_records_without_a_template_are_given_up_in_time(tmp_path: Path) -> None:
    """While it runs, not only at a stop."""
    async with Site(tmp_path, limits={"held_for": "60s"}).running() as site:
        site.send(ipfix(FLOW), ipfix(pack_set(2, template(300, [(8, 4)])), pack_set(300, bytes(4)), sequence=1))
        await until(lambda: site.durable == 1)
        assert site.dropped("no_template") == 0
        site.now += 61
        await until(lambda: site.dropped("no_template") == 1)


async def test_a_restart_needs_no_announcement(tmp_path: Path) -> None:
    """The templates of before are there before the first datagram; the file is small and whole."""
    async with Site(tmp_path).running() as site:
        site.send(ipfix(SHAPE))
        await until(lambda: site.input._decoder.templates.count == 1)
    assert (tmp_path / "netflow" / "netflow.templates").stat().st_size < 200
    async with Site(tmp_path).running() as again:
        again.send(ipfix(FLOW, sequence=1))
        await until(lambda: again.durable == 1)
    assert again.dropped("no_template") == 0


@pytest.mark.parametrize("data", [b"", b"NDflow1\nabcdefgh", b"NDflow2\n" + bytes(20), b"x" * (17 * 2**20)])
async def test_a_damaged_file_costs_only_the_wait(tmp_path: Path, data: bytes) -> None:
    """It starts, takes flows, and writes a good one."""
    path = tmp_path / "netflow" / "netflow.templates"
    path.parent.mkdir()
    path.write_bytes(data)
    async with Site(tmp_path).running() as site:
        site.send(ipfix(SHAPE, FLOW))
        await until(lambda: site.durable == 1)
    async with Site(tmp_path).running() as again:
        again.send(ipfix(FLOW, sequence=1))
        await until(lambda: again.durable == 1)


async def test_a_state_directory_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """A file in its place."""
    (tmp_path / "netflow").write_text("in the way")
    async with Site(tmp_path).running() as site:
        site.send(ipfix(SHAPE, FLOW))
        await until(lambda: site.durable == 1)


async def test_while_the_spool_waits_what_was_read_waits_undecoded(tmp_path: Path) -> None:
    """A datagram of one-byte records is a thousand times its size as events: no more than one beyond the limit."""
    limits = {"buffer_bytes": 2**16, "receive_buffer_bytes": 2**20}
    async with Site(tmp_path, limits=limits, community_id=False).running() as site:
        site.gate.clear()
        tiny = pack_set(2, template(257, [(4, 1)]))
        many = [ipfix(pack_set(257, bytes(2000)), sequence=2000 * number) for number in range(30)]
        site.send(ipfix(tiny), *many)
        await until(lambda: site.metric("nd_input_paused") == 1)
        batcher = site.input._intake._batcher
        assert batcher is not None
        assert batcher.buffered_bytes < 2**16 + 2000 * 500
        site.gate.set()
        await until(lambda: site.durable == 60_000)
    assert site.metric("nd_input_sequence_missing_total", unit="records") == 0


async def test_a_stop_takes_what_is_in_the_queues_as_there_is_room(tmp_path: Path) -> None:
    """The spool opens only after the stop has begun."""
    site = Site(tmp_path, limits={"buffer_bytes": 2**16, "receive_buffer_bytes": 2**20})
    async with site.running():
        site.gate.clear()
        site.send(*(v5(*[v5_flow()] * 30, sequence=30 * number) for number in range(300)))
        await until(lambda: site.metric("nd_input_paused") == 1)
        asyncio.get_running_loop().call_later(0.05, site.gate.set)
    lost = site.dropped("kernel_queue_full") or 0
    assert site.durable == 30 * (300 - lost)


async def test_a_stop_that_is_cut_off_counts_what_it_leaves(tmp_path: Path) -> None:
    """Nothing fits any more: what was decoded counts as events, what is in the queue by datagrams."""
    site = Site(tmp_path, limits={"buffer_bytes": 2**16, "receive_buffer_bytes": 2**20})
    await site.input.start()
    site.address = site.input.addresses[0]
    task = asyncio.create_task(site.input.run(site.accept))
    site.gate.clear()
    await asyncio.sleep(0)
    site.send(*(v5(v5_flow(), sequence=number) for number in range(500)))
    await until(lambda: site.metric("nd_input_paused") == 1)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert site.durable == 0
    assert site.dropped("stopped") == 500 - (site.dropped("kernel_queue_full") or 0)


async def test_an_exporter_outside_the_networks_is_refused_and_counted(tmp_path: Path) -> None:
    """And its templates are not heard."""
    async with Site(tmp_path, allow={"networks": ["127.0.0.2"]}).running() as site:
        site.send(ipfix(SHAPE, FLOW), source="127.0.0.3")
        site.send(ipfix(SHAPE, FLOW), source="127.0.0.2")
        await until(lambda: site.durable == 1 and site.dropped("not_allowed") == 1)
    assert site.metric("nd_input_templates") == 1


async def test_an_agent_s_flows_say_who_took_them_and_nothing_of_its_host(tmp_path: Path) -> None:
    """Through the agent's own plug and decoder."""
    site = Site(tmp_path)
    context = InputContext(tmp_path, site.metrics, lambda: site.now, cast("Any", None), HostFacts("agent-1", "agent-1"))
    config = agent_plug.Config.model_validate({"listen": ["127.0.0.1:0"]})
    site.input = agent_plug.build("netflow", config, context)
    async with site.running():
        site.send(ipfix(SHAPE, FLOW))
        await until(lambda: site.durable == 1)
    (batch,) = site.batches
    place = {"stream": batch.stream, "spool_id": "s", "sequence": 35, "received_at_ns": batch.received_at_ns}
    (line,) = OwnDecoder(DecodeSettings(observer_name="agent-1")).decode(b"".join(pack_body(batch)), **place).lines()
    event = orjson.loads(line)
    assert event["event"]["id"] == "s-z"
    assert event["agent"] == {"type": "ndagent", "version": __version__}
    assert event["observer"] == {"ip": "127.0.0.1"}
    assert "host" not in event


async def test_what_waited_for_its_template_does_not_come_all_at_once(tmp_path: Path) -> None:
    """A template of one byte, after a megabyte of records: as the spool takes them, in bounded memory."""
    limits = {"buffer_bytes": 2**16, "receive_buffer_bytes": 4 * 2**20}
    async with Site(tmp_path, limits=limits, community_id=False).running() as site:
        for number in range(20):
            site.send(ipfix(pack_set(257, bytes(5000))))
            await until(lambda number=number: site.metric("nd_input_received_bytes_total") == 5020 * (number + 1))
        site.gate.clear()
        site.send(ipfix(pack_set(2, template(257, [(4, 1)]))))
        await until(lambda: site.metric("nd_input_paused") == 1)
        batcher = site.input._intake._batcher
        assert batcher is not None
        assert batcher.buffered_bytes < 2**16 + 2 * 5000 * 500
        site.gate.set()
        await until(lambda: site.durable == 100_000)


async def test_a_datagram_that_was_cut_is_malformed(tmp_path: Path) -> None:
    """What is whole of it becomes events all the same."""
    async with Site(tmp_path, max_message_bytes=480).running() as site:
        site.send(v9(pack_set(0, template(256, [(8, 4), (1, 4)])), pack_set(256, bytes(440)), pack_set(256, bytes(8))))
        await until(lambda: site.durable == 55 and site.dropped("malformed") == 1)  # cut exactly between two sets
