"""Debian's senders over plain TCP, through the real daemon, into the file output."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_process import Certificates, CollectorProcess
from services import fetch, rsyslog, syslog_ng
from services.need import need, need_program
from services.process import free_port

# What an administrator writes to forward from one rsyslog to another; the queue keeps what waits.
_FORWARD = """
action(type="omfwd" target="127.0.0.1" port="{target}" protocol="tcp" tcp_framing="{framing}"
    template="RSYSLOG_SyslogProtocol23Format" action.resumeInterval="1" action.resumeRetryCount="-1")
"""


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[CollectorProcess]:
    """One for all: each test looks at what came since it began."""
    directory = tmp_path_factory.mktemp("senders")
    settings = {"inputs": {"syslog_tcp": {"listen": [f"127.0.0.1:{port}"]}}}
    with CollectorProcess(directory, Certificates.make(directory / "pki"), settings=settings) as running:
        yield running


def test_logger_in_either_format_and_framing(collector: CollectorProcess, port: int) -> None:
    """util-linux, as scripts on devices and servers call it; each call is a connection of its own."""
    need_program("logger")
    before = len(collector.events())
    ways = [("--rfc5424=notq",), ("--rfc3164",), ("--rfc5424=notq", "--octet-count")]
    for number, options in enumerate(ways, start=1):
        command = ["logger", "-T", "-n", "127.0.0.1", "-P", str(port), *options, "-p", "auth.warning", "-t", "sshd"]
        subprocess.run([*command, f"Failed password {options}"], check=True, timeout=10)
        collector.wait_for_lines(before + number)
    for event, options in zip(collector.events()[before:], ways, strict=True):
        assert event["message"] == f"Failed password {options}"
        assert event["process"]["name"] == "sshd"
        assert event["log"]["syslog"]["severity"]["name"] == "warning"
        assert event["source"]["ip"] == "127.0.0.1"
        assert "tls" not in event


@pytest.mark.service
def test_loggen_loses_nothing_over_several_connections(collector: CollectorProcess, port: int, tmp_path: Path) -> None:
    """As fast as it can: TCP waits."""
    need(fetch.SYSLOG_NG)
    before = len(collector.events())
    words = ["--inet", "--stream", "--rate", "1000000", "--active-connections", "4", "--number", "5000"]
    with syslog_ng.loggen([*words, "--size", "250", "127.0.0.1", str(port)], tmp_path) as sender:
        sender.wait_until(lambda: sender.returncode == 0, "clean end", 60)
    collector.wait_for_lines(before + 20_000, 30)
    assert len(collector.events()) == before + 20_000
    name = 'nd_input_received_events_total{input="syslog_tcp"}'
    collector.process.wait_until(lambda: collector.metrics()[name] == before + 20_000, "the same in the metrics")


@pytest.mark.service
@pytest.mark.parametrize("framing", ["traditional", "octet-counted"])
def test_rsyslog_forwards_in_either_framing(
    collector: CollectorProcess, port: int, tmp_path: Path, framing: str
) -> None:
    """In order, and host and program survive the relay."""
    need(fetch.RSYSLOG)
    need_program("logger")
    before = len(collector.events())
    local = free_port()
    config = rsyslog.local_input(tmp_path, port=local) + _FORWARD.format(target=port, framing=framing)
    with rsyslog.start(config, tmp_path, port=local):
        command = ["logger", "-T", "-n", "127.0.0.1", "-P", str(local), "--rfc3164", "-t", "relayed"]
        text = "".join(f"message {number}\n" for number in range(100))
        subprocess.run(command, input=text, text=True, check=True, timeout=30)
        collector.wait_for_lines(before + 100, 30)
    events = collector.events()[before:]
    assert [event["message"].strip() for event in events] == text.splitlines()
    assert {event["process"]["name"] for event in events} == {"relayed"}
    assert {event["log"]["syslog"]["version"] for event in events} == {"1"}
