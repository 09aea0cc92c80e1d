"""What goes wrong around a collector: dead outputs, full disks, flipped bits; nothing is lost, and it is said."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_site import Site, messages

DELIVERED = 'nd_output_delivered_events_total{{output="{}",stream="security_events"}}'
PENDING = 'nd_output_pending_events{{output="{}",stream="security_events"}}'


def test_a_dead_output_delays_nobody_and_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    """Law 4: a path below a regular file cannot be written; syslog is still taken, the other output still written."""
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")
    site = Site(
        tmp_path / "site",
        outputs={
            "dead": {
                "type": "file", "path": str(blocked / "events.ndjson"),
                "retry": {"initial": "50ms", "maximum": "200ms"}, "breaker": {"open_for": "100ms"},
            }
        },
    )
    with site.collector:
        site.send(5000)
        site.collector.wait_for_lines(5000)
        site.wait_for_metric(DELIVERED.format("archive"), 5000)  # counted once the file is synced and the cursor saved
        assert site.collector.metrics()[PENDING.format("dead")] == 5000
        site.wait_for_log("not delivering")
        blocked.unlink()
        site.wait_for_metric(DELIVERED.format("dead"), 5000)
        site.wait_for_log("delivering again")
        assert site.numbers(blocked / "events.ndjson") == list(range(5000))
        assert site.collector.stop() == 0
    assert "received 5000 · delivered 5000 · dropped 0" in site.log()[-1]["message"]


def test_a_second_sigterm_stops_without_waiting_for_outputs(tmp_path: Path) -> None:
    """The first one drains for up to shutdown_timeout; whoever is in a hurry says so, and the rest waits on disk."""
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")
    path = str(blocked / "events.ndjson")
    site = Site(tmp_path / "site", outputs={"archive": {"path": path}}, shutdown_timeout="10m")
    with site.collector:
        site.send(10)
        site.wait_for_metric('nd_input_received_events_total{input="syslog_tls"}', 10)
        os.kill(site.collector.pid, signal.SIGTERM)
        site.collector.process.wait_until(lambda: site.not_ready() == ["stopping"], "a stop that has begun")
        assert site.collector.stop() == 0
        assert "received 10 · delivered 0 · dropped 0 · pending 10" in site.log()[-1]["message"]
    blocked.unlink()
    with site.collector:
        site.wait_for_metric(DELIVERED.format("archive"), 10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, mounted for this test alone."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", mount]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("needs root and the right to mount a tmpfs; the spool's own tests fill a simulated disk")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def test_a_full_disk_blocks_says_so_and_resumes_by_itself(tmp_path: Path, small_disk: Path) -> None:
    """ENOSPC is not an error of the sender: it waits, and when there is room again not one event is missing."""
    site = Site(tmp_path / "site", state_dir=str(small_disk / "state"), spool={"segment_bytes": "1MiB"})
    ballast = small_disk / "ballast"
    with site.collector:
        site.send(100)
        site.collector.wait_for_lines(100)
        fill(ballast)
        with site.connect() as connection:
            connection.sendall(messages(20_000, first=100))
            site.wait_for_metric('nd_spool_full{stream="security_events"}', 1)
            site.wait_for_log("the disk is full")
            assert site.not_ready() == ["spool security_events has no room"]
            ballast.unlink()
            connection.unwrap()
        site.collector.wait_for_lines(20_100, timeout_seconds=30)
        site.wait_for_metric('nd_spool_full{stream="security_events"}', 0)
        assert site.not_ready() == []
        assert site.numbers() == list(range(20_100))
        assert site.command("spool", "verify").returncode == 0


def fill(ballast: Path) -> None:
    """Write until the disk has no room at all."""
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    break


def test_a_flipped_bit_is_named_quarantined_and_the_rest_delivered(tmp_path: Path) -> None:
    """Verify names the damaged record and exits 1, the daemon delivers every other one, the ledger holds."""
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")
    site = Site(tmp_path / "site", outputs={"archive": {"path": str(blocked / "events.ndjson")}})
    site.collector.start()
    for first in range(0, 300, 100):  # three records: a commit for each connection
        site.send(100, first=first)
        site.wait_for_metric('nd_input_received_events_total{input="syslog_tls"}', first + 100)
    site.collector.stop()

    segment = next((tmp_path / "site" / "state" / "spool" / "security_events").glob("*.seg*"))
    content = bytearray(segment.read_bytes())
    content[content.index(b"number 150")] ^= 0x10
    segment.write_bytes(content)
    verified = site.command("spool", "verify")
    assert verified.returncode == 1
    assert segment.name in verified.stdout + verified.stderr

    blocked.unlink()
    with site.collector:
        site.wait_for_metric(PENDING.format("archive"), 0)
        samples = site.collector.metrics()
        lost = samples['nd_output_quarantined_events_total{output="archive",stream="security_events"}']
        assert 1 <= lost <= 100
        assert samples[DELIVERED.format("archive")] == 300 - lost
        site.wait_for_log("quarantine")
        site.send(10, first=300)
        site.wait_for_metric(DELIVERED.format("archive"), 310 - lost)
    delivered = site.numbers(blocked / "events.ndjson")
    assert len(delivered) == 310 - lost
    assert 150 not in delivered
    assert {0, 299, 309} <= set(delivered)
    assert list((segment.parent / "quarantine").iterdir())
