"""What the demo says to a person: where everything is, what came of it, and what to type next.

Promises: text from events is escaped. Refuses: counting (collector.py, bus.py).
"""

import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from ndagent.core.log import printable
from ndcollector.demo.broker import Broker
from ndcollector.demo.collector import DemoCollector
from ndcollector.demo.devices import DEVICES

if TYPE_CHECKING:  # aiokafka is there only with [kafka]
    from ndcollector.demo.bus import Counted, Size

_SHOWN = 6
_VALUE_SHOWN = 88


def say_where(collector: DemoCollector) -> None:
    """Ports, directory and devices."""
    ports = " and ".join(map(str, collector.ports))
    other = "" if collector.ports == [6514, 6515] else " (6514 or 6515 is taken, the kernel chose)"
    print(f"collector on 127.0.0.1, ports {ports}{other}; everything in {collector.directory}", file=sys.stderr)
    print(f"{len(DEVICES)} devices, each with its own certificate:", file=sys.stderr)
    for device in DEVICES:
        framing = "octet-counted" if device.octet_counted else "line feeds"
        print(f"  {device.name:<8} {device.kind:<32} {framing}", file=sys.stderr)


def show_events(collector: DemoCollector) -> None:
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


def show_topics(broker: Broker, sizes: "Mapping[str, Size]", counted: "Counted | None") -> None:
    """How much stands on each topic, and some of it as a consumer got it."""
    print(f"\nOn the topics of {broker.what}:")
    for name, size in sizes.items():
        print(f"  {name:<16} {size.records:>9,} records on {size.used} of {size.partitions} partitions")
    if counted is None:
        return
    twice = counted.records - counted.events
    repeats = f", {twice:,} of them twice" if twice else ""
    print(f"A consumer counted {counted.events:,} events on them{repeats}:")
    for record in counted.shown:
        value = f"{record.value[:_VALUE_SHOWN]}{'…' if len(record.value) > _VALUE_SHOWN else ''}"
        print(f"  {record.partition:>2}/{record.offset:<3} {record.key:<18.18} {value}")


def say_next(collector: DemoCollector, *, running: bool, broker: Broker | None) -> None:
    """Commands for a shell beside the demo, or for after it; those that need the broker only while it is there."""
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
        if broker is not None:
            print(f"  {broker.consumer} security_events")
            print(f"  {program} topics diff {config}")
        print(f"  {program} tap {config}")
        print(f"  {program} agents ls {config}")
        print(f"  ndagent status -c {directory}/agent/ndagent.yaml")
        print(f"  echo 'a line of yours' >> {directory}/agent/app.log")
    print(f"  tail -n 1 {directory}/events/security_events.ndjson | python3 -m json.tool")
    print(f"  {program} check {config}")
    print(f"  {program} spool verify {config}")
    if not running and broker is None:
        print(f"  {program} run {config}")
    if not running and broker is not None:
        print("  # without --exit the broker stays, for `ndcollector topics diff`, `tap` and Kafka's own consumer:")
        print('  make demo ARGS="--kafka --events 20000"')
    if not running:
        print("  less README.md   # point a real device at it")
    print()


def _program() -> str:
    """How this program is started from the user's shell."""
    if shutil.which("ndcollector"):
        return "ndcollector"
    return sys.argv[0] if Path(sys.argv[0]).name == "ndcollector" else f"{sys.executable} -m ndcollector"
