"""The daemon as its operator meets it: serve, renew, revoke, replay, stop. Starts and reloads: see their own files."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from collector_site import Site, messages

from ndcollector import pki

DELIVERED = 'nd_output_delivered_events_total{output="archive",stream="security_events"}'


def ask_socket(path: Path, method: str, route: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """One HTTP request over the admin socket: status and JSON."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(10)
        admin.connect(str(path))
        head = f"{method} {route} HTTP/1.0\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        admin.sendall(head.encode() + body)
        reply = b""
        while piece := admin.recv(65536):
            reply += piece
    head_lines, _, payload = reply.partition(b"\r\n\r\n")
    return int(head_lines.split()[1]), json.loads(payload)


def test_a_taken_port_is_named_with_its_remedy(tmp_path: Path) -> None:
    """Start-up fails in words, and with exit status 1."""
    site = Site(tmp_path)
    with socket.create_server(("127.0.0.1", site.collector.ports[0])):
        refused = site.command("run")
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{site.collector.ports[0]}" in refused.stderr


def test_the_certificate_is_renewed_without_a_restart_or_a_dropped_connection(site: Site) -> None:
    """A new server certificate is used for the next handshake; the open connection sends on."""
    with site.connect() as old:
        before = old.getpeercert(binary_form=True)
        server = pki.Subject("server", "collector-1", dns=("localhost",), ips=("127.0.0.1",))
        (site.pki / "server.crt").write_text("-----BEGIN CERTIFICATE-----\nhalf")  # ignored until it is whole
        site.wait_for_log("the last good ones stay in use")
        pki.issue(site.pki, server, now=datetime.now(UTC), renew=True)
        site.wait_for_log("certificates reloaded")
        with site.connect() as new:
            assert new.getpeercert(binary_form=True) != before
        old.sendall(messages(7))
        site.collector.wait_for_lines(7)


def test_a_revoked_device_is_cut_off_and_the_others_stay(site: Site) -> None:
    """`pki revoke` reaches live connections, and the next handshake is refused and counted."""
    with site.connect("stolen") as stolen, site.connect("honest") as honest:
        stolen.sendall(messages(1))
        site.collector.wait_for_lines(1)
        assert site.command("pki", "revoke", "device:stolen").returncode == 0
        site.wait_for_log("certificates reloaded")
        stolen.settimeout(10)
        assert end_of(stolen)
        honest.sendall(messages(5, first=1))
        site.collector.wait_for_lines(6)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)), site.connect("stolen") as again:
        assert not end_of(again)  # TLS 1.3: the client learns of the refusal when it reads
    site.wait_for_metric('nd_input_refused_connections_total{input="syslog_tls",reason="certificate_revoked"}', 2)


def end_of(connection: ssl.SSLSocket) -> bool:
    """Whether the far side has ended the connection (or ends it now)."""
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_stop_delivers_what_was_read_and_a_restart_delivers_nothing_twice(site: Site) -> None:
    """SIGTERM is a drain: exit 0, the ledger as last line, every event once over two lives."""
    site.send(2000)
    assert site.collector.stop() == 0
    assert site.numbers() == list(range(2000))
    assert "received 2000 · delivered 2000 · dropped 0" in site.log()[-1]["message"]
    site.collector.start()
    site.send(10, first=2000)
    site.collector.wait_for_lines(2010)
    assert site.collector.stop() == 0
    assert site.numbers() == list(range(2010))
    assert "received 10 · delivered 10 · dropped 0" in site.log()[-1]["message"]


def test_systemd_hears_stopping_and_a_fed_watchdog(tmp_path: Path) -> None:
    """The unit is Type=notify with WatchdogSec: without these messages systemd would kill a healthy daemon."""
    site = Site(tmp_path)
    address = f"nd-test-{os.getpid()}-watchdog"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + address)
        systemd.settimeout(20)
        environment = {**os.environ, "NOTIFY_SOCKET": "@" + address, "WATCHDOG_USEC": "200000"}
        command = ["-m", "ndcollector", "run", "-c", str(site.collector.config)]
        daemon = subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL)
        try:
            heard = wait_to_hear(systemd, "READY=1") + wait_to_hear(systemd, "WATCHDOG=1")
            daemon.send_signal(signal.SIGHUP)
            heard += wait_to_hear(systemd, "RELOADING=1") + wait_to_hear(systemd, "READY=1")
            daemon.terminate()
            heard += wait_to_hear(systemd, "STOPPING=1")
            assert daemon.wait(20) == 0
        finally:
            daemon.kill()
    assert "MONOTONIC_USEC=" in heard
    assert heard.index("EXTEND_TIMEOUT_USEC=60000000") < heard.index("READY=1"), "a long start is not killed"
    assert "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=90000000" in heard, "nor a stop that drains for 30 s"


def wait_to_hear(systemd: socket.socket, wanted: str) -> str:
    """All datagrams up to the one that has this."""
    heard = ""
    while wanted not in heard:
        heard += systemd.recv(4096).decode() + "\n"
    return heard


def test_the_metrics_port_answers_only_to_its_own_name(site: Site) -> None:
    """A web page that rebinds its DNS name to loopback is not answered; any local user learns no evidence."""
    url = f"http://127.0.0.1:{site.collector.admin_port}"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers={"Host": "evil.example"}), timeout=5)
    assert refused.value.code == 421
    refused.value.close()
    for host in ("localhost", "127.0.0.1:1", "[::1]:9600", "192.0.2.1"):  # an address cannot be rebound
        asked = urllib.request.Request(f"{url}/health", headers={"Host": host})
        with urllib.request.urlopen(asked, timeout=5) as reply:
            assert reply.status == 200
    for route in ("/v1/ledger", "/v1/replay"):
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(url + route, timeout=5)
        assert missing.value.code == 404
        missing.value.close()


def test_a_live_replay_sends_events_again_with_the_same_ids(site: Site) -> None:
    """The operator asked for them: they are not taken for duplicates, and receivers can tell by event.id."""
    site.send(20)
    site.collector.wait_for_lines(20)
    done = site.command("spool", "replay", "--output", "archive", "--from", "5", "--socket", str(socket_of(site)))
    assert done.returncode == 0, done.stderr
    site.collector.wait_for_lines(35)
    assert site.numbers() == [*range(20), *range(5, 20)]
    ids = [event["event"]["id"] for event in site.collector.events()]
    assert ids[5:20] == ids[20:]
    status, ledger = ask_socket(socket_of(site), "GET", "/v1/ledger")
    assert status == 200
    assert ledger["adds_up"], ledger


def test_a_live_replay_of_a_range_sends_that_range(site: Site) -> None:
    """`--to` reaches the daemon, too."""
    for first in range(0, 20, 5):
        site.send(5, first=first)
        site.collector.wait_for_lines(first + 5)
    status, answer = ask_socket(socket_of(site), "POST", "/v1/replay", b'{"output": "archive", "from": 5, "to": 10}')
    assert status == 200
    assert answer == {"replayed": {"alerts": 0, "security_events": 5}}
    site.send(1, first=20)
    site.collector.wait_for_lines(26)
    assert site.numbers() == [*range(20), *range(5, 10), 20]


def test_what_is_no_stream_in_the_spool_directory_is_left_alone(tmp_path: Path) -> None:
    """A file system of its own has a lost+found that only root may enter."""
    site = Site(tmp_path)
    (tmp_path / "state" / "spool" / "lost+found").mkdir(parents=True)
    with site.collector:
        assert not list((tmp_path / "state" / "spool" / "lost+found").iterdir())


def socket_of(site: Site) -> Path:
    """The admin socket of the site's collector."""
    return site.collector.directory / "admin.sock"


def test_a_replay_of_an_output_that_is_not_there_is_refused(site: Site) -> None:
    """400 with words, not a traceback."""
    status, answer = ask_socket(socket_of(site), "POST", "/v1/replay", b'{"output": "none", "from": 0}')
    assert status == 400
    assert "none" in answer["error"]


def test_an_event_is_in_the_file_within_a_second(site: Site) -> None:
    """The promise others lean on: delivered means visible, without waiting for a batch to fill."""
    with site.connect() as connection:
        connection.sendall(messages(1))  # the first pays for imports and opened files
        site.collector.wait_for_lines(1)
        began = time.monotonic()
        connection.sendall(messages(1, first=1))
        site.collector.wait_for_lines(2, timeout_seconds=5)
        assert time.monotonic() - began < 1.0
