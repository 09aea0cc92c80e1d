"""`ndcollector top` over a real collector: what it counts, where it stands behind, and how it looks."""

import json
import signal
from pathlib import Path

from collector_site import Site
from live import Tap, Terminal, socket_of

from ndcollector.top_command import fetch, with_rates
from ndcollector.top_tables import age, size

PARTS = ("outputs", "spools")


def test_two_looks_make_rates(site: Site) -> None:
    """Events and bytes per second of inputs, events per second of outputs."""
    before = fetch(socket_of(site))
    with site.connect() as connection:
        site.send(200)
        site.collector.wait_for_lines(200)
        now = with_rates(before, fetch(socket_of(site)))
        connection.unwrap()
    (line,) = now["inputs"]
    (output,), (spool,) = ([row for row in now[what] if row["stream"] == "security_events"] for what in PARTS)
    seconds = now["time"] - before["time"]
    assert (line["input"], line["received"], line["connections"]) == ("syslog_tls", 200, 1)
    assert round(line["events_per_second"] * seconds) == 200
    assert line["bytes_per_second"] > 40 * line["events_per_second"]
    assert (output["output"], output["breaker"]) == ("archive", "closed")
    assert (output["settled"], output["lag_events"]) == (200, 0)
    assert round(output["events_per_second"] * seconds) == 200
    assert (spool["stream"], spool["next_sequence"], spool["full"]) == ("security_events", 200, False)
    assert 200 * 40 < spool["bytes"] < spool["max_bytes"]
    assert (now["taps"], now["not_ready_because"], now["adds_up"]) == (0, [], True)


def test_a_dead_output_shows_its_lag_and_its_breaker(tmp_path: Path) -> None:
    """And the other one does not."""
    (tmp_path / "wall").write_text("")
    broken = {"type": "file", "path": str(tmp_path / "wall" / "x.ndjson"), "breaker": {"failures": 1}}
    site = Site(tmp_path, outputs={"broken": broken}, shutdown_timeout="0s")
    with site.collector:
        site.send(20)
        site.collector.wait_for_lines(20)
        site.wait_for_log("breaker open")
        outputs = fetch(socket_of(site))["outputs"]
        table = site.command("top", "--once", "--interval", "0.2").stdout
    lines = {line["output"]: line for line in outputs if line["stream"] == "security_events"}
    assert (lines["broken"]["lag_events"], lines["broken"]["breaker"]) == (20, "open")
    assert lines["broken"]["lag_seconds"] > 0
    assert (lines["archive"]["lag_events"], lines["archive"]["lag_seconds"]) == (0, 0)
    rows = [row.split() for row in table.splitlines() if row.startswith("broken")]
    (row,) = [row for row in rows if row[2] == "security_events"]
    assert row[:4] == ["broken", "file", "security_events", "open"]
    assert row[5] == "20"


def test_once_is_for_scripts(site: Site) -> None:
    """Plain text or JSON, then the end; open taps are counted."""
    site.send(5)
    site.collector.wait_for_lines(5)
    with Tap(site):
        table = site.command("top", "--once", "--interval", "0.2")
        numbers = site.command("top", "--once", "--json", "--interval", "0.2")
    assert (table.returncode, table.stderr) == (0, "")
    assert "\x1b" not in table.stdout
    assert "collector-1  ndcollector" in table.stdout
    assert "1 taps" in table.stdout
    assert [row.split()[:3] for row in table.stdout.splitlines() if row.startswith("syslog_tls")] == [
        ["syslog_tls", "syslog_tls", "reading"]
    ]
    assert json.loads(numbers.stdout)["inputs"][0]["received"] == 5


def test_on_a_terminal_it_goes_on_through_a_restart_until_ctrl_c(tmp_path: Path) -> None:
    """A collector that restarts is waited for."""
    site = Site(tmp_path, node_name="col\x1blector")
    with site.collector, Terminal(site, "top", "--interval", "0.1") as top:
        top.read_until(b"security_events")
        assert b"col\\x1blector" in top.text
        site.collector.stop()
        top.read_until(b"no collector answers")
        top.text = b""
        site.collector.start()
        top.read_until(b"security_events")
        top.process.send_signal(signal.SIGINT)
        assert top.process.wait(10) == 0


def test_a_counter_that_went_back_is_no_negative_rate() -> None:
    """A restart, or a replay."""
    output = {"output": "a", "stream": "s", "settled": 100}
    before = {"time": 10.0, "inputs": [{"input": "i", "received": 50, "received_bytes": 9}], "outputs": [output]}
    after = {
        "time": 12.0,
        "inputs": [
            {"input": "i", "received": 10, "received_bytes": 29},
            {"input": "new", "received": 1, "received_bytes": 1},
        ],
        "outputs": [{**output, "settled": 40}],
    }
    now = with_rates(before, after)
    assert [line["events_per_second"] for line in now["inputs"]] == [0, 0]
    assert now["inputs"][0]["bytes_per_second"] == 10
    assert now["outputs"][0]["events_per_second"] == 0


def test_sizes_and_ages_read_at_a_glance() -> None:
    """No more digits than an eye takes in."""
    assert [size(n) for n in (0, 1023, 1536, 20 * 2**30, 2**41)] == ["0 B", "1023 B", "1.5 KiB", "20.0 GiB", "2.0 TiB"]
    assert [age(n) for n in (0, 59.94, 90, 5400, 129600)] == ["0.0s", "59.9s", "1.5m", "1.5h", "1.5d"]
