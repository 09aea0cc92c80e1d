"""Routing in a real daemon: every event where it belongs, over kills and restarts, and nothing where it must not be."""

import base64
import random
from pathlib import Path
from typing import Any

import orjson
from collector_site import Site
from live import Tap

MESSAGES = 500


def settings(directory: Path) -> dict[str, Any]:
    """Two outputs that share the events between them, one that gets what both do, one that gets originals."""
    out = directory / "out"
    redact = {"redact": {"patterns": ["secret", "card_number"]}}
    return {
        "worst": {"type": "file", "path": str(out / "worst.ndjson"), "where": "severity <= err"},
        "rest": {
            "type": "file",
            "path": str(out / "rest.ndjson"),
            "where": "not severity <= err",
            "transform": [redact, {"hash": ["host.*", "log.syslog.hostname"]}],
        },
        "raw": {"type": "file", "path": str(out / "raw.log"), "transform": [redact], "format": "raw"},
    }


def message(number: int) -> bytes:
    """Severities take turns; each has a secret, some bytes that are no UTF-8."""
    return b"<%d>1 2026-01-01T00:00:00Z host-%d app - - - number %d password=hunter2 caf%b\n" % (
        8 + number % 8, number % 5, number, b"\xe9" if number % 3 else b"e",
    )  # fmt: skip


def numbers(path: Path) -> list[int]:
    """The numbers in the messages of a file."""
    found = path.read_bytes().splitlines() if path.exists() else []
    return [int(line.split(b"number ")[1].split(b" ")[0]) for line in found]


def test_every_event_is_where_it_belongs_over_kills_and_restarts(tmp_path: Path) -> None:
    """Conservation per output, no matter when the daemon dies: file output has each once, text at least once."""
    draw = random.Random(5)
    site = Site(tmp_path, outputs=settings(tmp_path))
    out, sent = tmp_path / "out", 0
    site.collector.start()
    while sent < MESSAGES:
        count = min(draw.randint(80, 200), MESSAGES - sent)
        with site.connect() as connection:
            connection.sendall(b"".join(map(message, range(sent, sent + count))))
            connection.unwrap()
        sent += count
        site.wait_for_metric('nd_input_received_events_total{input="syslog_tls"}', count)  # of this process
        if draw.random() < 0.5:
            site.collector.kill()
        else:
            site.collector.stop()
        site.collector.start()
    for output in ("worst", "rest", "raw", "archive"):
        site.wait_for_metric(f'nd_output_pending_events{{output="{output}",stream="security_events"}}', 0)
    metrics = site.collector.metrics()
    assert site.collector.stop() == 0

    worst = [n for n in range(MESSAGES) if n % 8 <= 3]
    rest = [n for n in range(MESSAGES) if n % 8 > 3]
    assert sorted(numbers(site.collector.output)) == list(range(MESSAGES))
    assert sorted(numbers(out / "worst.ndjson")) == worst
    assert sorted(numbers(out / "rest.ndjson")) == rest
    assert set(numbers(out / "raw.log")) == set(range(MESSAGES))

    def of(output: str, part: str) -> float:
        return metrics[f'nd_output_{part}_events_total{{output="{output}",stream="security_events"}}']

    for output, delivered in (("worst", worst), ("rest", rest), ("raw", range(MESSAGES))):
        assert of(output, "delivered") == len(delivered)
        assert of(output, "filtered") == MESSAGES - len(delivered)
        assert of(output, "appended") == MESSAGES
    assert _has_none_of(out / "rest.ndjson", b"hunter2")
    assert b'"hostname":"host-' not in (out / "rest.ndjson").read_bytes()
    assert _has_none_of(out / "raw.log", b"hunter2", b"original")
    exact = message(1).rstrip(b"\n").replace(b"hunter2", b"[redacted]")
    assert exact in (out / "raw.log").read_bytes().splitlines()
    assert b'"original":' not in (out / "worst.ndjson").read_bytes()  # raw's originals are raw's alone


def _has_none_of(path: Path, *texts: bytes) -> bool:
    """Nor in base64, where bytes that are no text stand."""
    lines = path.read_bytes().splitlines()
    events = [orjson.loads(line)["event"] for line in lines if line.startswith(b"{")]
    lines += [base64.b64decode(event["original_base64"]) for event in events if "original_base64" in event]
    return not any(text in line for line in lines for text in texts)


def test_a_tap_at_an_output_shows_what_that_output_gets(tmp_path: Path) -> None:
    """Behind where and transform, in front of the format."""
    site = Site(tmp_path, outputs=settings(tmp_path))
    with site.collector, Tap(site, output="rest") as rest, Tap(site, output="raw") as raw, Tap(site) as every:
        with site.connect() as connection:
            connection.sendall(b"".join(map(message, range(16))))
            connection.unwrap()
        assert rest.events(8)[0]["message"] == "number 4 password=[redacted] caf\ufffd"
        assert raw.events(16)[0]["event"]["original"].endswith("number 0 password=[redacted] cafe")
        assert every.events(16)[0]["message"] == "number 0 password=hunter2 cafe"


def test_a_reload_changes_a_route_and_leaves_the_cursor(tmp_path: Path) -> None:
    """From then on, not from the beginning again."""
    site = Site(tmp_path, outputs=settings(tmp_path))
    worst = tmp_path / "out" / "worst.ndjson"
    with site.collector:
        for first, where in ((0, "severity == debug"), (16, None)):
            with site.connect() as connection:
                connection.sendall(b"".join(map(message, range(first, first + 16))))
                connection.unwrap()
            site.wait_for_metric('nd_output_pending_events{output="worst",stream="security_events"}', 0)
            site.wait_for_metric('nd_input_received_events_total{input="syslog_tls"}', first + 16)
            if where is not None:
                site.change(lambda config: config["outputs"]["worst"].update(where="severity == debug"))
                site.wait_for_log("reloaded: ")
        site.collector.process.wait_until(lambda: len(numbers(worst)) == 10, "ten lines", 15)
    assert numbers(worst) == [0, 1, 2, 3, 8, 9, 10, 11, 23, 31]
