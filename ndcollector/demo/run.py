"""`ndcollector demo`: a fresh PKI, a real collector on loopback, a dozen kinds of devices that send to it over TLS.

Promises: what you see is what a user gets (the same daemon, a configuration file, certificates from `pki`, TLS on real
sockets, an enrolled agent that tails a live file); progress goes to stderr, the last line on stdout is the ledger, and
with `--exit` the status is 0 only if every event that was sent (the agent's, too) was received, delivered and is a line
in a file; with `--kafka`, if a consumer found it on its topic as well.
Refuses: leaving daemon or broker behind, however the demo ends.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from ndcollector.demo.agent import DemoAgent
from ndcollector.demo.broker import Broker, DemoBroker
from ndcollector.demo.collector import Counts, DemoCollector, DemoError
from ndcollector.demo.devices import DEVICES
from ndcollector.demo.senders import Sender, Sending, run_all
from ndcollector.demo.show import say_next, say_where, show_events, show_topics

_DEFAULT_RATE = 500.0
"""Events a second when the demo runs until Ctrl-C: lively, and an hour of it is about a gigabyte."""
_SETTLE_SECONDS = 30.0
_REFRESH_SECONDS = 0.5
_SEED = 5424
_STREAM = "security_events"
_TOPICS = (_STREAM, "alerts", "metrics")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `demo`."""
    parser = subparsers.add_parser("demo", help="see the main job at work on loopback, with its own certificates")
    parser.add_argument("--events", metavar="N", type=_count, help="send N events (default: until Ctrl-C)")
    parser.add_argument("--exit", action="store_true", help="end when all events are delivered; needs --events")
    parser.add_argument(
        "--rate",
        metavar="R",
        type=_rate,
        help=f"events a second (default: as fast as it goes with --events, else {_DEFAULT_RATE:.0f})",
    )
    parser.add_argument(
        "--state",
        metavar="DIR",
        type=Path,
        default=Path("demo-state"),
        help="where everything is put, replacing an earlier demo's (default: %(default)s)",
    )
    parser.add_argument(
        "--kafka", action="store_true", help="put the events on a Kafka topic as well; `make demo` brings the broker"
    )
    parser.set_defaults(handler=run)


def _count(text: str) -> int:
    if not 0 < int(text) < 10**12:
        raise ValueError
    return int(text)


def _rate(text: str) -> float:
    if not 0.1 <= float(text) <= 1e9:
        raise ValueError
    return float(text)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and return its exit status."""
    if arguments.exit and arguments.events is None:
        print("demo: --exit needs --events N", file=sys.stderr)
        return 2
    try:
        return asyncio.run(_demo(arguments))
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


async def _demo(arguments: argparse.Namespace) -> int:
    collector = DemoCollector(arguments.state)
    collector.prepare(forgets=arguments.events is None)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with DemoBroker(collector.directory / "broker") as keeper:
        broker = await _start_broker(keeper, stop) if arguments.kafka else None
        collector.configure(bootstrap=broker.bootstrap if broker else None)
        if broker is not None:
            print(f"broker: {broker.what} on {broker.bootstrap}", file=sys.stderr)
            await collector.apply_topics()
        return await _with_collector(arguments, collector, broker, stop)


async def _start_broker(keeper: DemoBroker, stop: asyncio.Event) -> Broker:
    starting, stopping = asyncio.ensure_future(keeper.start()), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            raise DemoError("interrupted before the broker was there")
        return starting.result()
    finally:
        starting.cancel()
        stopping.cancel()


async def _with_collector(
    arguments: argparse.Namespace, collector: DemoCollector, broker: Broker | None, stop: asyncio.Event
) -> int:
    senders, agent = _senders(arguments, collector), _agent(arguments, collector)
    faults: list[str] = []
    try:
        await collector.start()
        say_where(collector)
        await agent.enroll()
        if arguments.events is None:
            say_next(collector, running=True, broker=broker)
        settled, failures = await _send(collector, [*senders, agent], stop, events=arguments.events)
        sent = sum(sender.sent for sender in senders) + agent.sent
        show_events(collector)
        faults += [*failures, *_faults(collector, settled, sent, alone=arguments.exit)]
        if broker is not None:
            faults += await _look_at_topics(broker, settled, is_counted=arguments.events is not None)
        counts = settled
        if arguments.events is not None and not arguments.exit and not stop.is_set():
            say_next(collector, running=True, broker=broker)
            sys.stdout.flush()  # also where a pipe reads it
            print("All sent. The collector keeps running for you to try things; Ctrl-C ends it.", file=sys.stderr)
            await stop.wait()
            counts = await collector.counts() or settled
    finally:
        await agent.stop()
        status = await collector.stop()
    if status != 0:
        faults.append(f"the collector ended with status {status}; see {collector.log}")
    for fault in faults:
        print(f"demo: {fault}", file=sys.stderr)
    say_next(collector, running=False, broker=broker)
    print(f"received {counts.received} · delivered {counts.delivered} · dropped {counts.dropped}", flush=True)
    return 1 if faults else 0


async def _look_at_topics(broker: Broker, counts: Counts, *, is_counted: bool) -> list[str]:
    """Show what stands on the topics; where it is not all that was delivered, say so."""
    from aiokafka.errors import KafkaError  # late: aiokafka is there only with [kafka]

    from ndcollector.demo import bus

    try:
        sizes = {name: await bus.size(broker.bootstrap, name) for name in _TOPICS}
        counted = await bus.count(broker.bootstrap, _STREAM) if is_counted else None
    except (KafkaError, OSError) as error:
        return [f"the topics cannot be read: {error}"]
    show_topics(broker, sizes, counted)
    found = counted.events if counted else sizes[_STREAM].records
    return [] if found >= counts.delivered else [f"{counts.delivered} delivered, but {found} on topic {_STREAM}"]


def _share(arguments: argparse.Namespace, index: int) -> tuple[int | None, float | None]:
    """Events and rate of one of the senders: the devices, and behind them the agent."""
    events, rate, parts = arguments.events, arguments.rate, len(DEVICES) + 1
    if rate is None and events is None:
        rate = _DEFAULT_RATE
    return None if events is None else events // parts + (index < events % parts), rate and rate / parts


def _agent(arguments: argparse.Namespace, collector: DemoCollector) -> DemoAgent:
    count, rate = _share(arguments, len(DEVICES))
    return DemoAgent(collector, count=count, rate=rate)


def _senders(arguments: argparse.Namespace, collector: DemoCollector) -> list[Sender]:
    """A sender for each device: the events and the rate shared out, the two ports taken in turn."""
    senders = []
    for index, device in enumerate(DEVICES):
        share, rate = _share(arguments, index)
        senders.append(
            Sender(
                device,
                collector.credentials(device.name).context(),
                port=collector.ports[index % 2],
                count=share,
                rate=rate,
                random=Random(_SEED + index),
                now=lambda: datetime.now(UTC),
            )
        )
    return senders


async def _send(
    collector: DemoCollector, senders: Sequence[Sending], stop: asyncio.Event, *, events: int | None
) -> tuple[Counts, list[str]]:
    """Send, show progress, and wait until all that was sent is delivered; the last counts and the senders' failures."""
    sending = asyncio.ensure_future(run_all(senders, stop))
    counts, settled, shown = Counts(), False, ""
    deadline: float | None = None
    loop = asyncio.get_running_loop()
    while not settled and (deadline is None or loop.time() < deadline) and collector.running:
        if sending.done():  # looked at before the counts, so that they are those of all that was sent
            deadline = deadline or loop.time() + _SETTLE_SECONDS
            await asyncio.sleep(_REFRESH_SECONDS / 5)
        else:
            await asyncio.wait([sending], timeout=_REFRESH_SECONDS)
        counts = await collector.counts() or counts
        sent = sum(sender.sent for sender in senders)
        settled = deadline is not None and counts.pending == 0 and sent <= counts.received == counts.delivered
        shown = _progress(sent, counts, of=events, shown=shown)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if not sending.done():
        stop.set()  # the collector died: senders that hang end with it
    return counts, await sending


def _progress(sent: int, counts: Counts, *, of: int | None, shown: str) -> str:
    """Say how far it is, over the last line on a terminal, and elsewhere only if it is not what was `shown` last."""
    total = "" if of is None else f" of {of:,}"
    line = (
        f"sent {sent:,}{total} · received {counts.received:,} · delivered {counts.delivered:,} · "
        f"dropped {counts.dropped:,}"
    )
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif line != shown:
        print(line, file=sys.stderr, flush=True)
    return line


def _faults(collector: DemoCollector, counts: Counts, sent: int, *, alone: bool) -> list[str]:
    """Where the ledger does not add up; empty means all is well. Not `alone`: somebody may have sent by hand, too."""
    faults = []
    received_all = counts.received == sent if alone else counts.received >= sent
    if not received_all or counts.delivered != counts.received or counts.dropped:
        faults.append(
            f"the ledger does not add up: sent {sent}, received {counts.received}, delivered {counts.delivered}, "
            f"dropped {counts.dropped}; see {collector.log}"
        )
    lines = collector.lines_in_files()
    if lines != counts.delivered if alone else lines < counts.delivered and not collector.forgets:
        faults.append(f"{counts.delivered} delivered, but {lines} lines in {collector.directory / 'events'}")
    return faults
