"""Debian's senders over UDP, through the real daemon, into the file output."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_process import Certificates, CollectorProcess
from services import fetch, syslog_ng
from services.need import need, need_program
from services.process import free_port


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def collector(tmp_path: Path, port: int) -> Iterator[CollectorProcess]:
    certificates = Certificates.make(tmp_path / "pki")
    settings = {"inputs": {"syslog_udp": {"listen": [f"127.0.0.1:{port}"]}}}
    with CollectorProcess(tmp_path / "collector", certificates, settings=settings) as running:
        yield running


def test_logger_in_either_format(collector: CollectorProcess, port: int) -> None:
    """util-linux, as scripts on devices and servers call it."""
    need_program("logger")
    for form in ("--rfc5424=notq", "--rfc3164"):
        command = ["logger", "--udp", "--server", "127.0.0.1", "--port", str(port), form, "-p", "auth.warning"]
        subprocess.run([*command, "-t", "sshd", f"Failed password ({form})"], check=True, timeout=10)
        collector.wait_for_lines(1 if form == "--rfc5424=notq" else 2)  # two ports, two sockets: no order between them
    for event, form in zip(collector.events(), ("--rfc5424=notq", "--rfc3164"), strict=True):
        assert event["message"] == f"Failed password ({form})"
        assert event["process"]["name"] == "sshd"
        assert event["log"]["syslog"]["severity"]["name"] == "warning"
        assert event["source"]["ip"] == "127.0.0.1"


@pytest.mark.service
def test_loggen_sends_and_the_sum_is_right(collector: CollectorProcess, port: int, tmp_path: Path) -> None:
    """Sent is delivered plus what the kernel says it dropped, whatever else this machine does."""
    need(fetch.SYSLOG_NG)
    words = ["--inet", "--dgram", "--rate", "5000", "--number", "10000", "--size", "250", "127.0.0.1"]
    with syslog_ng.loggen([*words, str(port)], tmp_path) as sender:
        sender.wait_until(lambda: sender.returncode == 0, "clean end", 60)

    def accounted() -> float:
        return collector.metrics()['nd_input_received_events_total{input="syslog_udp"}']

    collector.process.wait_until(lambda: accounted() >= 10_000, "10 000 messages accounted for", 20)
    lost = collector.metrics()['nd_input_dropped_events_total{input="syslog_udp",reason="kernel_queue_full"}']
    collector.wait_for_lines(10_000 - int(lost))
    assert len(collector.events()) + lost == accounted() == 10_000


@pytest.mark.service
def test_a_sender_over_its_rate_is_dropped_by_reason(tmp_path: Path, port: int) -> None:
    """Sent is delivered, plus beyond the rate, plus what the kernel dropped."""
    need(fetch.SYSLOG_NG)
    limits = {"events_per_second_per_origin": 500.0}
    settings = {"inputs": {"syslog_udp": {"listen": [f"127.0.0.1:{port}"], "limits": limits}}}
    with CollectorProcess(tmp_path / "collector", Certificates.make(tmp_path / "pki"), settings=settings) as collector:
        words = ["--inet", "--dgram", "--rate", "5000", "--number", "5000", "--size", "250", "127.0.0.1", str(port)]
        with syslog_ng.loggen(words, tmp_path) as sender:
            sender.wait_until(lambda: sender.returncode == 0, "clean end", 60)

        def value(name: str, more: str = "") -> float:
            return collector.metrics()[f'nd_input_{name}{{input="syslog_udp"{more}}}']

        collector.process.wait_until(lambda: value("received_events_total") >= 5000, "5000 accounted for", 20)
        beyond = value("dropped_events_total", ',reason="rate_limited"')
        lost = value("dropped_events_total", ',reason="kernel_queue_full"')
        collector.wait_for_lines(5000 - int(beyond + lost))
        assert len(collector.events()) + beyond + lost == value("received_events_total") == 5000
        assert beyond > 0
        log = collector.process.log
        collector.process.wait_until(lambda: "127.0.0.1 sends more than limits allow" in log.read_text(), "its name")
