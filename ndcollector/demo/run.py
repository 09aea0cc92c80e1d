"""`ndcollector demo`: a fresh PKI, a real collector on loopback, a dozen kinds of devices that send to it over TLS.

Promises: what you see is what a user gets (the same daemon, a configuration file, certificates from `pki`, TLS on real
sockets); progress goes to stderr, the last line on stdout is the ledger, and with `--exit` the status is 0 only if
every event that was sent was received, delivered and is a line in a file.
Refuses: leaving the daemon behind, however the demo ends.
"""

import argparse
import asyncio
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import orjson

from ndagent.core.log import printable
from ndcollector.demo.collector import Counts, DemoCollector, DemoError
from ndcollector.demo.devices import DEVICES
from ndcollector.demo.senders import Sender, run_all

_DEFAULT_RATE = 500.0
"""Events a second when the demo runs until Ctrl-C: lively, and an hour of it is about a gigabyte."""
_SETTLE_SECONDS = 30.0
_REFRESH_SECONDS = 0.5
_SHOWN = 6
_SEED = 5424


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `demo`."""
    parser = subparsers.add_parser("demo", help="see the main job at work on loopback, with its own certificates")
    parser.add_argument("--events", metavar="N", type=_count, help="send N events (default: until Ctrl-C)")
    parser.add_argument("--exit", action="store_true", help="end when all events are delivered; needs --events")
    parser.add_argument(
        "--rate", metavar="R", type=_rate,
        help=f"events a second (default: as fast as it goes with --events, else {_DEFAULT_RATE:.0f})",
    )
    parser.add_argument(
        "--state", metavar="DIR", type=Path, default=Path("demo-state"),
        help="where everything is put, replacing an earlier demo's (default: %(default)s)",
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
    senders = _senders(arguments, collector)
    try:
        await collector.start()
        _say_where(collector)
        if arguments.events is None:
            _say_next(collector, running=True)
        settled, failures = await _send(collector, senders, stop, events=arguments.events)
        _show_events(collector)
        counts = settled
        if arguments.events is not None and not arguments.exit and not stop.is_set():
            _say_next(collector, running=True)
            print("All sent. The collector keeps running for you to try things; Ctrl-C ends it.", file=sys.stderr)
            await stop.wait()
            counts = await collector.counts() or settled
    finally:
        status = await collector.stop()
    sent = sum(sender.sent for sender in senders)
    faults = [*failures, *_faults(collector, settled, sent, alone=arguments.exit)]
    if status != 0:
        faults.append(f"the collector ended with status {status}; see {collector.log}")
    for fault in faults:
        print(f"demo: {fault}", file=sys.stderr)
    _say_next(collector, running=False)
    print(f"received {counts.received} · delivered {counts.delivered} · dropped {counts.dropped}", flush=True)
    return 1 if faults else 0


def _senders(arguments: argparse.Namespace, collector: DemoCollector) -> list[Sender]:
    """A sender for each device: the events and the rate shared out, the two ports taken in turn."""
    events, rate = arguments.events, arguments.rate
    if rate is None and events is None:
        rate = _DEFAULT_RATE
    senders = []
    for index, device in enumerate(DEVICES):
        share = None if events is None else events // len(DEVICES) + (index < events % len(DEVICES))
        senders.append(
            Sender(
                device, collector.credentials(device.name).context(), port=collector.ports[index % 2], count=share,
                rate=rate and rate / len(DEVICES), random=Random(_SEED + index), now=lambda: datetime.now(UTC),
            )
        )
    return senders


async def _send(
    collector: DemoCollector, senders: Sequence[Sender], stop: asyncio.Event, *, events: int | None
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
    stop.set()  # where the collector died: senders that hang end with it
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


def _say_where(collector: DemoCollector) -> None:
    ports = " and ".join(map(str, collector.ports))
    other = "" if collector.ports == [6514, 6515] else " (6514 or 6515 is taken, the kernel chose)"
    print(f"collector on 127.0.0.1, ports {ports}{other}; everything in {collector.directory}", file=sys.stderr)
    print(f"{len(DEVICES)} devices, each with its own certificate:", file=sys.stderr)
    for device in DEVICES:
        framing = "octet-counted" if device.octet_counted else "line feeds"
        print(f"  {device.name:<8} {device.kind:<32} {framing}", file=sys.stderr)


def _show_events(collector: DemoCollector) -> None:
    """A few decoded events of different devices in short, and one as it stands in the file."""
    seen: dict[str, bytes] = {}
    for path in collector.event_files()[:1]:
        with path.open("rb") as file:
            for line in file:
                event = orjson.loads(line)
                seen.setdefault(event.get("host", {}).get("hostname") or event.get("source", {}).get("ip", "?"), line)
                if len(seen) >= len(DEVICES):
                    break
    if not seen:
        return
    print("\nSome of the events, decoded:")
    for host, line in list(seen.items())[:_SHOWN]:
        event = orjson.loads(line)
        severity = event.get("log", {}).get("syslog", {}).get("severity", {}).get("name", "-")
        syslog = event.get("log", {}).get("syslog", {})
        text = printable(event.get("message") or f"{syslog.get('msgid')} {syslog.get('structured_data')}")
        print(f"  {event['@timestamp'][11:19]} {host:<17.17} {severity:<13} {text[:72]}{'…' if len(text) > 72 else ''}")
    print("\nOne as it stands in the file:")
    with suppress(StopIteration):
        shortest = min(seen.values(), key=len)
        print("  " + orjson.dumps(orjson.loads(shortest), option=orjson.OPT_INDENT_2).decode().replace("\n", "\n  "))


def _say_next(collector: DemoCollector, *, running: bool) -> None:
    directory = collector.directory
    program, config = _program(), f"-c {collector.config}"
    print("\nWhat to type next:")
    if running:
        device = directory / "pki/issued/device-app-1"
        print(f"  curl -s http://127.0.0.1:{collector.admin_port}/metrics | grep events_total")
        print(
            "  echo '<13>1 - me test - - - hello' | openssl s_client -quiet -no_ign_eof "
            f"-connect 127.0.0.1:{collector.ports[0]} \\\n"
            f"    -cert {device}.crt -key {device}.key -CAfile {directory}/pki/ca.crt"
        )
    print(f"  tail -n 1 {directory}/events/security_events.ndjson | python3 -m json.tool")
    print(f"  {program} check {config}")
    print(f"  {program} spool verify {config}")
    if not running:
        print(f"  {program} run {config}")
        print("  less README.md   # point a real device at it")
    print()


def _program() -> str:
    """How this program is started from the user's shell."""
    if shutil.which("ndcollector"):
        return "ndcollector"
    return sys.argv[0] if Path(sys.argv[0]).name == "ndcollector" else f"{sys.executable} -m ndcollector"
