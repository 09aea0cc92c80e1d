"""The launcher's faults reach the real daemon: a chaos run on a machine that never fails would prove nothing."""

import socket
import ssl
import time
from datetime import datetime, timedelta

import pytest
from chaos_site import Faulty
from collector_process import Certificates, CollectorProcess
from collector_site import messages
from faulty_daemon import order


class Collector(Faulty, CollectorProcess):
    package = "ndcollector"


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    """One for all these tests, well again after each: a start costs more than what is tested."""
    directory = tmp_path_factory.mktemp("site")
    with Collector(directory, Certificates.make(directory / "pki")) as running:
        yield running


def send(collector: Collector, count: int) -> int:
    """So many messages on a connection of their own; how many lines there will be with them."""
    there = len(collector.events())
    context = ssl.create_default_context(cafile=str(collector.certificates.ca))
    context.load_cert_chain(collector.certificates.client_cert, collector.certificates.client_key)
    raw = socket.create_connection(("127.0.0.1", collector.ports[0]), timeout=10)
    with context.wrap_socket(raw, server_hostname="localhost") as connection:
        connection.sendall(messages(count))
        connection.unwrap()
    return there + count


def test_a_disk_without_room_and_then_with(collector: Collector) -> None:
    """What is read waits in memory, said as a full spool, and is all there afterwards."""
    collector.suffer(no_space=True)
    expected = send(collector, 10)
    full = 'nd_spool_full{stream="security_events"}'
    collector.process.wait_until(lambda: collector.metrics()[full] == 1, "a full spool")
    collector.suffer(no_space=None)
    collector.wait_for_lines(expected)


@pytest.mark.parametrize("fault", ["sync_errors", "write_errors"])
def test_errors_of_the_disk_are_met_and_survived(collector: Collector, fault: str) -> None:
    """Every write fails for a while: said as an error of the disk; nothing is lost."""
    said = collector.process.log.read_text
    before = said().count("Check the disk")
    collector.suffer(**{fault: 1.0})
    expected = send(collector, 10)
    collector.process.wait_until(lambda: said().count("Check the disk") > before, "a word about the disk")
    collector.suffer(**{fault: None})
    collector.wait_for_lines(expected)


def test_a_slow_disk_and_a_clock_that_jumps(collector: Collector) -> None:
    """A commit takes as long as the disk; the time of receipt is what the wall clock says, the daemon lives on."""
    collector.suffer(sync_seconds=0.3, clock_seconds=-3600)
    began = time.monotonic()
    collector.wait_for_lines(send(collector, 1))
    assert time.monotonic() - began >= 0.3
    collector.suffer(sync_seconds=None, clock_seconds=3600)
    collector.wait_for_lines(send(collector, 1))
    collector.suffer(clock_seconds=None)
    before, after = (datetime.fromisoformat(event["event"]["created"]) for event in collector.events()[-2:])
    assert after - before > timedelta(hours=1.9)


def test_a_start_meets_the_faults_that_are_there_already(collector: Collector) -> None:
    """With a disk that refuses everything it does not start, and says why; once the disk is well it does."""
    collector.kill()
    collector.suffer(no_space=True)
    (collector.directory / "state").rename(collector.directory / "old")
    with pytest.raises(AssertionError, match="No space left"):
        collector.start()
    collector.suffer(no_space=None)
    collector.start()


def test_a_collector_that_has_run_before_starts_on_a_full_disk(collector: Collector) -> None:
    """All files that it cannot do without are there; what it reads meanwhile waits, and is all there afterwards."""
    collector.kill()
    collector.suffer(no_space=True)
    collector.start()
    expected = send(collector, 10)
    full = 'nd_spool_full{stream="security_events"}'
    collector.process.wait_until(lambda: collector.metrics()[full] == 1, "a full spool")
    collector.suffer(no_space=None)
    collector.wait_for_lines(expected)


def test_a_fault_that_is_not_known_is_refused(collector: Collector) -> None:
    """A typo must not make a quiet day of a storm."""
    with pytest.raises(OSError, match="no such fault: no_spase"):
        order(collector.directory / "faults.sock", {"no_spase": True})

