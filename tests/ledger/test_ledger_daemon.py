"""`ndcollector ledger` on a real collector: devices over mutual TLS, kills, evictions, dead letters and replays."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from collector_site import Site, messages
from live import socket_of

from ndcollector.__main__ import main
from ndcollector.admin_client import AdminClient
from ndcollector.ledger.look import look

DEVICES = ("fw-1", "fw-2", "fw-3")
in_turn = pytest.mark.xdist_group("ledger")  # tests that use `shared`, each with devices of its own


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One collector with two outputs: a start is most of what a test costs here."""
    directory = tmp_path_factory.mktemp("ledger")
    site = Site(directory, outputs={"second": {"type": "file", "path": str(directory / "second.ndjson")}})
    with site.collector:
        yield site


def ledger(site: Site) -> dict[str, Any]:
    """What the command makes of it, without a process for each look: all of it, and it must add up."""
    if site.collector.process.returncode is None:
        with closing(AdminClient(socket_of(site))) as client:
            found: dict[str, Any] = json.loads(client.get("/v1/ledger/origins").read())
    else:
        found = in_files(site)
    assert found["adds_up"], found["problems"]
    return found


def in_files(site: Site) -> dict[str, Any]:
    """What the next start would find after a kill at this moment."""
    state = site.collector.directory / "state"
    return look(state, max_origins=99, clock=time.time).plain(origin=None, output=None, stream=None)


def figures(found: dict[str, Any], part: str, output: str = "archive") -> dict[str, int]:
    """One figure of one output by device."""
    return {
        row["origin"].removeprefix("nd:device:"): line[part]
        for row in found["origins"] for line in row["outputs"] if line["output"] == output
    }  # fmt: skip


def wait_for_delivered(site: Site, output: str = "archive", **counts: int) -> None:
    """Until the ledger says so of these devices, with _ for -."""
    wanted = {name.replace("_", "-"): count for name, count in counts.items()}
    site.collector.process.wait_until(
        lambda: wanted.items() <= figures(ledger(site), "delivered", output).items(), f"{wanted} at {output}", 30
    )


def send(site: Site, device: str, count: int) -> None:
    """Send events that both outputs have when this returns."""
    site.send(count, device=device)
    for output in ("archive", "second"):
        wait_for_delivered(site, output, **{device.replace("-", "_"): count})


@in_turn
def test_three_devices_are_told_apart_alive_and_dead(shared: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures from the running collector, from its files after a kill, and after the next start."""
    for count, device in enumerate(DEVICES, start=1):
        shared.send(100 * count, device=device)
    wait_for_delivered(shared, fw_1=100, fw_2=200, fw_3=300)
    shared.collector.kill()
    assert main(["ledger", "--json", "-c", str(shared.collector.config)]) == 0
    dead = figures(json.loads(capsys.readouterr().out), "delivered")
    assert dead.items() >= {"fw-1": 100, "fw-2": 200, "fw-3": 300}.items()
    shared.collector.start()
    shared.send(50, device="fw-2")
    wait_for_delivered(shared, fw_1=100, fw_2=250, fw_3=300)
    assert main(["ledger", "--origin", "*fw-2", "--output", "archive", "-c", str(shared.collector.config)]) == 0
    table = capsys.readouterr().out.splitlines()
    (row,) = (line.split() for line in table if line.startswith("nd:device:"))
    assert (row[0], row[1], row[4:]) == (
        "nd:device:fw-2", "security_events", ["250", "archive", "250", "0", "0", "0", "0", "0"],
    )  # fmt: skip
    assert table[-1] == "adds up"


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


@in_turn
def test_a_replay_counts_nobodys_events_twice(shared: Site) -> None:
    """What is sent again stands under (repeats), so the cursor's account and the ledger agree all the same."""
    send(shared, "fw-4", 100)
    (end,) = (one["received"] for one in ledger(shared)["streams"] if one["stream"] == "security_events")
    where = ["--output", "archive", "--from", str(end - 60), "-c", str(shared.collector.config)]
    assert main(["spool", "replay", *where]) == 0
    expected = {"fw-4": 100, "(repeats)": 60}.items()
    wait_until = shared.collector.process.wait_until
    wait_until(lambda: expected <= figures(ledger(shared), "delivered").items(), "60 repeats")
    wait_until(lambda: expected <= figures(in_files(shared), "delivered").items(), "60 repeats in its files")


@in_turn
def test_a_removed_output_keeps_its_sums(shared: Site) -> None:
    """Marked closed, with why; the other one goes on."""
    send(shared, "fw-5", 100)
    sums = sum(figures(ledger(shared), "delivered", "second").values())
    shared.change(lambda config: config["outputs"].pop("second"))
    shared.wait_for_log("no output is named second")
    shared.send(10, device="fw-5")
    wait_for_delivered(shared, fw_5=110)
    closed = [(one["stream"], one["output"], one["delivered"]) for one in ledger(shared)["closed"]]
    assert sorted(closed) == [("alerts", "second", 0), ("security_events", "second", sums)]


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
                connection.sendall(messages(20, first=first + 20 * piece))
                time.sleep(0.005)
            connection.unwrap()
    except OSError:
        return


def test_the_ledger_survives_kills(tmp_path: Path) -> None:
    """No event is counted twice or forgotten, whichever of ledger and cursor was written last."""
    kills(tmp_path, 2, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_the_ledger_survives_many_kills(tmp_path: Path, seed: int) -> None:
    """As above, often."""
    kills(tmp_path, 40, seed=seed)
