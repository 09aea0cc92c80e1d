"""`ndcollector ledger` on a real collector: devices over mutual TLS, kills, evictions, dead letters and replays."""

import json
import random
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from collector_site import Site, messages
from live import socket_of

from ndcollector.admin_client import AdminClient
from ndcollector.ledger.look import look

DEVICES = ("fw-1", "fw-2", "fw-3")


def ledger(site: Site) -> dict[str, Any]:
    """What the command makes of it, without a process for each look: all of it, and it must add up."""
    if site.collector.process.returncode is None:
        with closing(AdminClient(socket_of(site))) as client:
            found: dict[str, Any] = json.loads(client.get("/v1/ledger/origins").read())
    else:
        state = site.collector.directory / "state"
        found = look(state, max_origins=99, clock=time.time).plain(origin=None, output=None, stream=None)
    assert found["adds_up"], found["problems"]
    return found


def figures(found: dict[str, Any], part: str, output: str = "archive") -> dict[str, int]:
    """One figure of one output by device."""
    return {
        row["origin"].removeprefix("nd:device:"): line[part]
        for row in found["origins"] for line in row["outputs"] if line["output"] == output
    }  # fmt: skip


def test_three_devices_are_told_apart_alive_and_dead(tmp_path: Path) -> None:
    """The same figures from the running collector, from its files after a kill, and after the next start."""
    site = Site(tmp_path)
    with site.collector:
        for count, device in enumerate(DEVICES, start=1):
            site.send(100 * count, device=device)
        site.collector.wait_for_lines(600)
        site.wait_for_metric('nd_output_pending_events{output="archive",stream="security_events"}', 0)
        expected = {"fw-1": 100, "fw-2": 200, "fw-3": 300}
        assert figures(ledger(site), "delivered") == expected
        site.collector.kill()
        dead = site.command("ledger", "--json")
        assert (dead.returncode, figures(json.loads(dead.stdout), "delivered")) == (0, expected)
        site.collector.start()
        site.send(50, device="fw-2")
        site.collector.wait_for_lines(650)
        site.wait_for_metric('nd_output_pending_events{output="archive",stream="security_events"}', 0)
        table = site.command("ledger", "--origin", "*fw-2")
    assert table.returncode == 0
    (row,) = (line.split() for line in table.stdout.splitlines() if line.startswith("nd:device:"))
    assert (row[0], row[1], row[4:]) == (
        "nd:device:fw-2", "security_events", ["250", "archive", "250", "0", "0", "0", "0", "0"],
    )  # fmt: skip
    assert table.stdout.splitlines()[-1] == "adds up"


def test_what_an_output_gave_up_is_named_by_device(tmp_path: Path) -> None:
    """on_full: drop_oldest at a dead output: whose events those were is known, and the living output has them all."""
    (tmp_path / "wall").write_text("")
    dead = {"type": "file", "path": str(tmp_path / "wall" / "x.ndjson"), "on_full": "drop_oldest"}
    settings = {"outputs": {"dead": dead}, "spool": {"max_bytes": "1MiB"}, "shutdown_timeout": "0s"}
    site = Site(tmp_path, **settings)
    count = 8000
    with site.collector:
        for first in (0, count):
            for device in DEVICES:
                site.send(count, device=device, first=first)
        total = 2 * count * len(DEVICES)
        site.collector.wait_for_lines(total, 60)
        site.wait_for_metric('nd_output_pending_events{output="archive",stream="security_events"}', 0)
        found = ledger(site)
        site.collector.kill()
        after_kill = ledger(site)
    evicted, pending = figures(found, "evicted", "dead"), figures(found, "pending", "dead")
    assert set(evicted) == set(DEVICES), "nothing of it stands under a name in parentheses"
    assert {device: evicted[device] + pending[device] for device in DEVICES} == dict.fromkeys(DEVICES, 2 * count)
    assert sum(evicted.values()) > total // 3
    assert figures(found, "delivered") == dict.fromkeys(DEVICES, 2 * count)
    assert figures(after_kill, "evicted", "dead") == evicted


def test_a_replay_counts_nobodys_events_twice(tmp_path: Path) -> None:
    """What is sent again stands under (repeats), so the cursor's account and the ledger agree all the same."""
    site = Site(tmp_path)
    with site.collector:
        site.send(100)
        site.collector.wait_for_lines(100)
        site.wait_for_metric('nd_output_delivered_events_total{output="archive",stream="security_events"}', 100)
        done = site.command("spool", "replay", "--output", "archive", "--from", "40")
        assert done.returncode == 0, done.stderr
        site.wait_for_metric('nd_output_delivered_events_total{output="archive",stream="security_events"}', 160)
        found = ledger(site)
    assert figures(found, "delivered") == {"fw-1": 100, "(repeats)": 60}
    assert figures(ledger(site), "delivered") == {"fw-1": 100, "(repeats)": 60}


def test_a_removed_output_keeps_its_sums(tmp_path: Path) -> None:
    """Marked closed, with why; the other one goes on."""
    site = Site(tmp_path, outputs={"second": {"type": "file", "path": str(tmp_path / "second.ndjson")}})
    with site.collector:
        site.send(100)
        site.wait_for_metric('nd_output_delivered_events_total{output="second",stream="security_events"}', 100)
        site.change(lambda config: config["outputs"].pop("second"))
        site.wait_for_log("no output is named second")
        site.send(10)
        site.wait_for_metric('nd_output_delivered_events_total{output="archive",stream="security_events"}', 110)
        found = ledger(site)
    assert figures(found, "delivered") == {"fw-1": 110}
    assert [(one["output"], one["delivered"]) for one in ledger(site)["closed"]] == [("second", 100)]


def kills(directory: Path, rounds: int, seed: int) -> None:
    """Devices stream, the collector is killed at any moment; each device's lines are what the ledger says."""
    site, draw = Site(directory), random.Random(seed)
    with site.collector:
        for number in range(rounds):
            threads = [
                threading.Thread(target=stream, args=(site, device, 20_000 * number), daemon=True) for device in DEVICES
            ]
            for thread in threads:
                thread.start()
            time.sleep(draw.uniform(0.2, 1.6))  # the moment of the kill is the point of the test, not a wait
            site.collector.kill()
            for thread in threads:
                thread.join(20)
            ledger(site)
            site.collector.start()
        site.wait_for_metric('nd_output_pending_events{output="archive",stream="security_events"}', 0)
        found = ledger(site)
        events = site.collector.events()
    names = Counter(event["tls"]["client"]["subject"] for event in events)
    assert len({event["event"]["id"] for event in events}) == len(events)
    by_device = {device: next(n for subject, n in names.items() if device in subject) for device in DEVICES}
    assert figures(found, "delivered") == by_device
    assert figures(found, "pending") == dict.fromkeys(DEVICES, 0)
    assert {row["origin"].removeprefix("nd:device:"): row["received"] for row in found["origins"]} == by_device


def stream(site: Site, device: str, first: int) -> None:
    """Messages in small pieces until the connection dies."""
    try:
        with site.connect(device) as connection:
            for piece in range(200):
                connection.sendall(messages(100, first=first + 100 * piece))
                time.sleep(0.005)
            connection.unwrap()
    except OSError:
        return


def test_the_ledger_survives_kills(tmp_path: Path) -> None:
    """No event is counted twice or forgotten, whichever of ledger and cursor was written last."""
    kills(tmp_path, 3, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_the_ledger_survives_many_kills(tmp_path: Path, seed: int) -> None:
    """As above, often."""
    kills(tmp_path, 40, seed=seed)
