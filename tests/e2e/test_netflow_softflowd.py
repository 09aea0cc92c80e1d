"""softflowd, a real exporter, through the real daemon, into the file output: every figure is as the packets had it."""

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_process import Certificates, CollectorProcess
from netflow_datagrams import ipfix, pack_set, template
from services import fetch, softflowd
from services.need import need
from services.process import free_port
from services.softflowd import udp_packet

FLOWS = 300
BEGAN = 1_790_000_000.25


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def collector(tmp_path: Path, port: int) -> Iterator[CollectorProcess]:
    certificates = Certificates.make(tmp_path / "pki")
    settings = {"inputs": {"netflow": {"listen": [f"127.0.0.1:{port}"]}}}
    with CollectorProcess(tmp_path / "collector", certificates, settings=settings) as running:
        yield running


def packets() -> Iterator[tuple[float, bytes]]:
    """Three of each flow: the n-th has n bytes of payload; every tenth is IPv6."""
    for turn in range(3):
        for number in range(FLOWS):
            ends = (f"10.1.{number // 250}.{number % 250}", "192.0.2.53")
            if number % 10 == 0:
                ends = (f"2001:db8::{number + 1:x}", "2001:db8:ffff::53")
            frame = udp_packet(*ends, (40_000 + number, 53), payload_bytes=number)
            yield BEGAN + turn + number / 1000, frame


def flows(collector: CollectorProcess) -> list[dict[str, Any]]:
    """Those of the file, without what the exporter tells of itself."""
    return [event for event in collector.events() if event["event"]["action"] == "netflow_flow"]


@pytest.mark.service
@pytest.mark.parametrize("version", [5, 9, 10])
def test_softflowd_s_flows_are_those_of_the_packets(
    collector: CollectorProcess, port: int, tmp_path: Path, version: int
) -> None:
    """Addresses, ports, bytes, packets and duration; v5 knows no IPv6."""
    need(fetch.SOFTFLOWD)
    file = softflowd.capture(tmp_path / "flows.pcap", packets())
    wanted = {number: number for number in range(FLOWS) if version != 5 or number % 10}
    with softflowd.export(["-a", "-r", file], tmp_path, version=version, port=port) as exporter:
        exporter.wait_until(lambda: exporter.returncode == 0, "clean end", 30)
    collector.process.wait_until(lambda: len(flows(collector)) == len(wanted), f"{len(wanted)} flows", 20)
    for event in flows(collector):
        number = event["source"]["port"] - 40_000
        head = 48 if number % 10 == 0 else 28
        assert event["source"]["bytes"] == event["network"]["bytes"] == 3 * (head + wanted.pop(number))
        assert event["source"]["packets"] == 3
        assert event["source"]["ip"].startswith("10.1." if number % 10 else "2001:db8::")
        assert event["destination"]["port"] == 53
        assert event["network"]["type"] == ("ipv4" if number % 10 else "ipv6")
        assert event["network"]["transport"] == "udp"
        assert event["network"]["community_id"].startswith("1:")
        assert abs(event["event"]["duration"] - 2e9) < 5e6
        assert event["netflow"]["version"] == version
        assert event["observer"]["ip"] == "127.0.0.1"
    assert wanted == {}
    metrics = collector.metrics()
    assert {name: value for name, value in metrics.items() if "nd_input_sequence_missing" in name and value} == {}
    assert {name: value for name, value in metrics.items() if "nd_input_dropped_events" in name and value} == {}


@pytest.mark.service
def test_softflowd_s_sampling_is_undone(collector: CollectorProcess, port: int, tmp_path: Path) -> None:
    """One packet of ten is looked at; its IPFIX options say so."""
    need(fetch.SOFTFLOWD)
    ends = ("10.1.0.1", "192.0.2.53", (40_000, 53))
    file = softflowd.capture(
        tmp_path / "one.pcap", ((BEGAN + at / 100, udp_packet(*ends, payload_bytes=72)) for at in range(1000))
    )
    with softflowd.export(["-s", "10", "-a", "-r", file], tmp_path, version=10, port=port) as exporter:
        exporter.wait_until(lambda: exporter.returncode == 0, "clean end", 30)
    collector.process.wait_until(lambda: bool(flows(collector)), "a flow", 20)
    (event,) = flows(collector)
    assert event["netflow"]["samplingRate"] == 10
    assert event["netflow"]["packetDeltaCount"] == 100
    assert event["network"]["packets"] == 1000
    assert event["network"]["bytes"] == 100_000


def test_templates_survive_a_restart_of_the_daemon(collector: CollectorProcess, port: int) -> None:
    """Announced to one process, used by the next, after a clean stop."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", port))
        flow = pack_set(256, bytes.fromhex("0a000001 00000005"))
        sender.send(ipfix(pack_set(2, template(256, [(8, 4), (1, 4)])), flow))
        collector.wait_for_lines(1)
        collector.stop()
        collector.start()
        sender.send(ipfix(flow, sequence=1))
        collector.wait_for_lines(2)
    assert Counter(event["source"]["ip"] for event in collector.events()) == {"10.0.0.1": 2}
