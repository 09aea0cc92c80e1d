"""Real senders over mutual TLS, through the real daemon, into the file output: everything arrives, in order, as ECS.

Each sender is fed plain syslog on a port of its own and forwards it, as a relay at a customer's would.
"""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_process import ROOT, Certificates, CollectorProcess
from services import fetch, rsyslog, stunnel, syslog_ng
from services.need import need
from services.process import free_port

pytestmark = [pytest.mark.service, pytest.mark.timeout(60)]

COUNT = 3000
# As in the README, so that its snippets run unchanged but for address, port and paths.
NAME = "collector.example.net"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Fresh ones; the collector's carries the README's name, loopback's name and its address."""
    return Certificates.make(tmp_path / "pki", names=(NAME, "localhost"))


@pytest.fixture
def collector(tmp_path: Path, certificates: Certificates) -> Iterator[CollectorProcess]:
    """The real daemon, ready."""
    with CollectorProcess(tmp_path / "collector", certificates) as running:
        yield running


def _message(number: int) -> bytes:
    """Every field of RFC 5424 in use: escapes in structured data, UTF-8 in the text, an offset in the time."""
    return (
        f"<{8 * (4 + number % 20) + number % 8}>1 2025-11-23T14:39:07.{number:06d}+01:00 fw-{number % 7}.example.net "
        f'app{number % 5} {1000 + number} ID{number % 9} [origin@32473 n="{number}" q="a\\"b\\]c"] '
        f"Grüße Nr {number}: drop 10.0.0.{number % 255}"
    ).encode()


def _feed(port: int, count: int) -> None:
    """Hand the messages to a relay over one plain connection, one a line."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"".join(_message(number) + b"\n" for number in range(count)))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):  # the relay has read it all
            pass


def _numbers(events: list[dict[str, Any]]) -> list[int]:
    return [int(event["log"]["syslog"]["structured_data"]["origin@32473"]["n"]) for event in events]


def _check_event(event: dict[str, Any], number: int) -> None:
    """The ECS fields of _message(number), and who sent it."""
    syslog = event["log"]["syslog"]
    assert event["@timestamp"] == f"2025-11-23T13:39:07.{number:06d}Z"
    assert event["message"].strip() == f"Grüße Nr {number}: drop 10.0.0.{number % 255}"
    assert event["host"]["hostname"] == event["host"]["name"] == syslog["hostname"] == f"fw-{number % 7}.example.net"
    assert event["process"] == {"name": f"app{number % 5}", "pid": 1000 + number}
    assert syslog["appname"] == f"app{number % 5}"
    assert syslog["procid"] == str(1000 + number)
    assert syslog["msgid"] == f"ID{number % 9}"
    assert syslog["facility"]["code"] == 4 + number % 20
    assert syslog["severity"]["code"] == number % 8
    assert syslog["structured_data"]["origin@32473"]["q"] == 'a"b]c'
    assert event["source"]["ip"] == "127.0.0.1"
    assert event["tls"]["client"]["subject"] == "CN=device-1"
    assert "tags" not in event


def _arrives_whole(collector: CollectorProcess, port: int, *, count: int = COUNT) -> None:
    """Feed the relay and see everything come out of the collector once, in order, field by field."""
    _feed(port, count)
    collector.wait_for_lines(count)
    events = collector.events()
    assert _numbers(events) == list(range(count))
    for number, event in enumerate(events):
        _check_event(event, number)
    assert {event["source"]["port"] for event in events} == {events[0]["source"]["port"]}, "one connection"


@pytest.mark.parametrize("driver", ["gtls", "ossl"])
@pytest.mark.parametrize("framing", ["octet-counted", "traditional"])
def test_rsyslog_forwards_everything(
    tmp_path: Path, certificates: Certificates, collector: CollectorProcess, driver: str, framing: str
) -> None:
    """omfwd with either TLS driver, in either framing."""
    need(fetch.RSYSLOG)
    port = free_port()
    config = rsyslog.client_config(
        tmp_path,
        port=port,
        target=collector.ports[0],
        driver=driver,
        framing=framing,
        pki=certificates.client_files,
        peer="localhost",
    )
    with rsyslog.start(config, tmp_path, port=port):
        _arrives_whole(collector, port)


@pytest.mark.parametrize("driver", ["syslog", "network"])
def test_syslog_ng_forwards_everything(
    tmp_path: Path, certificates: Certificates, collector: CollectorProcess, driver: str
) -> None:
    """syslog() is octet-counted, network() is one message a line."""
    need(fetch.SYSLOG_NG)
    port = free_port()
    config = syslog_ng.client_config(port=port, target=collector.ports[1], driver=driver, pki=certificates.client_files)
    with syslog_ng.start(config, tmp_path, port=port):
        _arrives_whole(collector, port)


def _snippet(language: str, replacements: dict[str, str]) -> str:
    """A configuration as the README prints it, with address, port and paths of this test; each must occur in it."""
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, f"README.md has no {language} snippet"
    text = found[1]
    for old, new in replacements.items():
        assert old in text, f"README.md: the {language} snippet has no {old!r}; adapt this test"
        text = text.replace(old, new)
    return text


def test_the_readme_snippet_for_rsyslog_works(
    tmp_path: Path, certificates: Certificates, collector: CollectorProcess
) -> None:
    """What a newcomer copies must run as printed."""
    need(fetch.RSYSLOG)
    port = free_port()
    snippet = _snippet(
        "rsyslog",
        {
            "/etc/rsyslog.d/pki/device.crt": str(certificates.client_cert),
            "/etc/rsyslog.d/pki/device.key": str(certificates.client_key),
            "/etc/rsyslog.d/pki/ca.crt": str(certificates.ca),
            f'target="{NAME}" port="6514"': f'target="127.0.0.1" port="{collector.ports[0]}"',
        },
    )
    with rsyslog.start(rsyslog.local_input(tmp_path, port=port) + snippet, tmp_path, port=port):
        # Fewer than its queue holds in memory: once it spills to disk, rsyslog sends both parts over a connection each,
        # out of order, and 8.2302 may then sit on a last batch until new messages come.
        _arrives_whole(collector, port, count=600)


def test_the_readme_snippet_for_syslog_ng_works(
    tmp_path: Path, certificates: Certificates, collector: CollectorProcess
) -> None:
    """What a newcomer copies must run as printed."""
    need(fetch.SYSLOG_NG)
    port = free_port()
    snippet = _snippet(
        "syslog-ng",
        {
            "/etc/syslog-ng/pki/device.crt": str(certificates.client_cert),
            "/etc/syslog-ng/pki/device.key": str(certificates.client_key),
            "/etc/syslog-ng/pki/ca.crt": str(certificates.ca),
            f'"{NAME}" port(6514)': f'"127.0.0.1" port({collector.ports[0]})',
        },
    )
    with syslog_ng.start(syslog_ng.local_source("s_src", port=port) + snippet, tmp_path, port=port):
        _arrives_whole(collector, port)


_LOGGEN = re.compile(r"seq: (\d+), thread: (\d+)")


@pytest.mark.parametrize("options", [["--syslog-proto"], []], ids=["rfc5424-octet-counted", "rfc3164-lf"])
def test_loggen_over_several_connections(
    tmp_path: Path, certificates: Certificates, collector: CollectorProcess, options: list[str]
) -> None:
    """loggen 3.38 cannot show a certificate, so stunnel carries it; each of its connections stays in order."""
    need(fetch.SYSLOG_NG)
    need(fetch.STUNNEL)
    port, connections, each = free_port(), 4, 1000
    arguments = ["--inet", "--stream", "--rate", "100000", "--number", str(each), "--size", "226", "--quiet", *options]
    arguments += [f"--active-connections={connections}", "127.0.0.1", str(port)]
    with (
        stunnel.start(tmp_path, port=port, target=collector.ports[0], pki=certificates.client_files),
        syslog_ng.loggen(arguments, tmp_path) as loggen,
    ):
        collector.wait_for_lines(connections * each)
        loggen.wait_until(lambda: loggen.returncode == 0, "clean end")
    by_port: dict[int, list[int]] = {}
    for event in collector.events():
        found = _LOGGEN.search(event["message"])
        assert found, event
        by_port.setdefault(event["source"]["port"], []).append(int(found[1]))
        assert event["process"]["name"] == "prg00000"
        assert "tags" not in event
    assert len(by_port) == connections
    assert all(numbers == list(range(each)) for numbers in by_port.values())
