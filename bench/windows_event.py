"""Windows events: recorded XML to ECS lines, events a second on one core.

    python bench/windows_event.py [--seconds 3]

The XML is that of the test vectors (tests/wire/vectors/winevent), each kind as often as any other, hostile ones by
themselves. CPU is this process's own; what Windows takes to render an event (EvtRender, EvtFormatMessage) is not in it.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from ndagent.wire.winevent import parse  # noqa: E402 - found by the line above
from ndagent.wire.winevent_ecs import Rules, event_line  # noqa: E402

TARGET_PER_SECOND = 5000
_VECTORS = ROOT / "tests" / "wire" / "vectors" / "winevent"
_RULES = Rules({"ecs": {"version": "8.17.0"}, "agent": {"type": "ndagent"}, "host": {"hostname": "ws01"}})
_WORDS = "<RenderingInfo Culture='en-US'><Message>{}</Message><Task>Logon</Task></RenderingInfo></Event>"
_MESSAGE = "An account was successfully logged on.\r\n\r\nSubject:\r\n\tSecurity ID:\t\tS-1-0-0\r\n" * 24
"""About as long as Windows' own words for event 4624."""


def _documents() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(_VECTORS.glob("*.jsonl")):
        vectors = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.stem] = [vector["xml"] for vector in vectors if "xml" in vector]
    words = _WORDS.format(_MESSAGE)
    found["security, with the provider's words"] = [
        xml.removesuffix("</Event>") + words for xml in found["security"] if xml.endswith("</Event>")
    ]
    return found


def _measure(documents: Sequence[str], seconds: float) -> tuple[float, float]:
    """Events a second, and the share of the time that reading the XML takes."""
    began, rendered = time.process_time(), 0
    while time.process_time() - began < seconds:
        for xml in documents:
            event_line(xml, created="2026-11-26T00:00:00.000000Z", rules=_RULES)
        rendered += len(documents)
    took = (time.process_time() - began) / rendered
    began = time.process_time()
    for xml in documents * 20:
        parse(xml, max_value_chars=65536)
    reading = (time.process_time() - began) / (len(documents) * 20)
    return 1 / took, reading / took


def main() -> int:
    """Print the table; 1 if a kind of event is slower than promised."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--seconds", type=float, default=3.0, help="CPU spent on each row")
    seconds = arguments.parse_args().seconds
    print(f"{'Windows events to ECS':40} {'events/s of one core':>22} {'µs':>6} {'XML':>5} {'characters':>11}")
    slowest = float("inf")
    for name, documents in _documents().items():
        rate, reading = _measure(documents, seconds)
        size = sum(map(len, documents)) / len(documents)
        print(f"{name:40} {rate:>22,.0f} {1e6 / rate:>6.0f} {reading:>5.0%} {size:>11,.0f}")
        slowest = min(slowest, rate)
    is_reached = slowest >= TARGET_PER_SECOND
    print(f"  {'reached   ' if is_reached else 'FALL SHORT'}  {TARGET_PER_SECOND:,} events/s of one core, every kind")
    return int(not is_reached)


if __name__ == "__main__":
    raise SystemExit(main())
