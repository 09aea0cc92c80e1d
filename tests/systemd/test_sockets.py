"""Sockets that somebody holds for us: a restart refuses no connection and loses no message."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_process import CollectorProcess
from collector_site import Site, messages
from services.process import ServiceProcess

from ndagent.core.inherited import Inherited, take_over
from ndagent.core.listening import bind
from ndagent.core.settings import Listen

LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
"""What systemd does between fork and exec: descriptors from 3 on are the sockets that it holds."""


class HeldCollector(CollectorProcess):
    """Started as systemd starts it; who holds the descriptor is the test."""

    def __init__(self, fd: int, *arguments: Any, **more: Any) -> None:
        variables = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "syslog_tls"}
        super().__init__(*arguments, environment=variables, pass_fds=[fd], **more)
        self._fd = fd

    def program(self) -> list[str]:
        return [sys.executable, "-c", LAUNCH, str(self._fd), *super().program()]


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """What systemd would hold."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as made:
        yield made


class HeldSite(Site):
    """A collector whose first address the test holds."""

    def __init__(self, directory: Path, sock: socket.socket, **settings: Any) -> None:
        super().__init__(directory, **settings)
        plain, port = self.collector, sock.getsockname()[1]
        listen = {"inputs": {"syslog_tls": {"listen": [f"127.0.0.1:{port}", f"127.0.0.1:{plain.ports[1]}"]}}}
        self.collector = HeldCollector(
            sock.fileno(), directory, plain.certificates, settings={**settings, **listen}
        )
        self.collector.ports = (port, self.collector.ports[1])


class Senders:
    """Devices that connect, send one message and leave, over and over, while the collector comes and goes."""

    def __init__(self, site: Site) -> None:
        self.context: ssl.SSLContext = site.context("fw-1")
        self.port = site.collector.ports[0]
        self.sent: list[int] = []
        self.failures: list[str] = []
        self._numbers = iter(range(1_000_000))
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            with self._lock:
                number = next(self._numbers)
            try:
                raw = socket.create_connection(("127.0.0.1", self.port), timeout=30)
                with self.context.wrap_socket(raw, server_hostname="localhost") as connection:
                    connection.sendall(messages(1, first=number))
                    connection.unwrap()
            except OSError as error:
                self.failures.append(f"{number}: {error!r}")
            else:
                self.sent.append(number)

    def stop(self) -> None:
        """After what is under way."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def test_a_restart_refuses_nobody_and_loses_nothing(tmp_path: Path, held: socket.socket) -> None:
    """Two restarts under connections that never cease: each connects, and each message comes out."""
    site = HeldSite(tmp_path, held)
    site.collector.start()
    senders = Senders(site)
    try:
        for round_number in range(1, 3):
            wanted = 40 * round_number
            site.collector.process.wait_until(lambda wanted=wanted: len(senders.sent) >= wanted, "messages sent", 30)
            assert site.collector.stop() == 0
            site.collector.start()
        site.collector.process.wait_until(lambda: len(senders.sent) >= 120, "messages sent", 30)
    finally:
        senders.stop()
        site.collector.wait_for_lines(len(senders.sent))
        site.collector.stop()
    assert senders.failures == []
    assert sorted(site.numbers()) == sorted(senders.sent)
    assert "taking over sockets" in site.collector.process.log.read_text()


def test_a_stop_lets_in_whom_it_has_accepted(tmp_path: Path) -> None:
    """A sender whose handshake began could not know; what it sends right behind it is taken."""
    site = Site(tmp_path, inputs={"syslog_tls": {"limits": {"drain_timeout": "25s"}}})
    site.collector.start()
    with socket.create_connection(("127.0.0.1", site.collector.ports[0]), timeout=30) as raw:
        site.wait_for_metric('nd_input_connections{input="syslog_tls"}', 1)
        os.kill(site.collector.pid, signal.SIGTERM)
        site.collector.process.wait_until(lambda: not accepts(site.collector.ports[0]), "an end of listening", 20)
        with site.context("fw-1").wrap_socket(raw, server_hostname="localhost") as connection:
            connection.sendall(messages(1))
            connection.unwrap()
    assert site.collector.stop() == 0
    assert site.numbers() == [0]


def accepts(port: int) -> bool:
    """Whether anybody listens there; it does not connect, which would be one more to let in."""
    wanted = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1] == wanted and row[3] == "0A" for row in rows)  # TCP_LISTEN


def test_a_connection_that_came_while_nobody_served_is_served_by_the_next(tmp_path: Path, held: socket.socket) -> None:
    """It waits in the kernel, even after a kill."""
    site = HeldSite(tmp_path, held)
    site.collector.start()
    site.collector.kill()
    raw = socket.create_connection(("127.0.0.1", site.collector.ports[0]), timeout=30)
    site.collector.start()
    try:
        with site.context("fw-1").wrap_socket(raw, server_hostname="localhost") as connection:
            connection.sendall(messages(1))
            connection.unwrap()
        site.collector.wait_for_lines(1)
    finally:
        site.collector.stop()


def test_a_reload_that_exchanges_the_input_keeps_the_held_socket(tmp_path: Path, held: socket.socket) -> None:
    """It could not be bound anew while somebody holds it."""
    site = HeldSite(tmp_path, held)
    with site.collector:
        site.change(lambda config: config["inputs"]["syslog_tls"].update(max_message_bytes=4096))
        done = site.command("reload")
        assert done.returncode == 0, done.stderr
        site.send(3)
        site.collector.wait_for_lines(3)


def test_a_socket_that_no_input_wants_is_said_and_a_reload_may_want_it(tmp_path: Path, held: socket.socket) -> None:
    """Connections to it wait for an answer, at the start as after a reload that takes its input away."""
    site = HeldSite(tmp_path, held)
    first, second = site.collector.ports
    said = f"no input listens on 127.0.0.1:{first}"
    listen_on(site, second)
    with site.collector:
        site.wait_for_log(said)
        listen_on(site, first)
        done = site.command("reload")
        assert done.returncode == 0, done.stderr
        site.send(1)
        site.collector.wait_for_lines(1)
        assert site.collector.process.log.read_text().count(said) == 1
        listen_on(site, second)
        done = site.command("reload")
        assert done.returncode == 0, done.stderr
        assert site.collector.process.log.read_text().count(said) == 2
        site.collector.ports = (second, second)
        site.send(1)
        site.collector.wait_for_lines(2)


def listen_on(site: Site, port: int) -> None:
    """On this port only."""
    site.change(lambda config: config["inputs"]["syslog_tls"].update(listen=[f"127.0.0.1:{port}"]))


def test_what_is_no_socket_keeps_no_daemon_from_starting(tmp_path: Path) -> None:
    """A socket unit with ListenFIFO=, or fewer descriptors than were told."""
    site = Site(tmp_path)
    readable, writable = os.pipe()
    plain = site.collector
    site.collector = HeldCollector(readable, tmp_path, plain.certificates)
    site.collector.ports = plain.ports
    site.change(lambda config: config["inputs"]["syslog_tls"].update(listen=[f"127.0.0.1:{plain.ports[0]}"]))
    try:
        with site.collector:
            site.send(1)
            site.collector.wait_for_lines(1)
            assert "it is no socket" in site.collector.process.log.read_text()
    finally:
        os.close(readable)
        os.close(writable)


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="apt-get install systemd")
def test_systemd_itself_starts_it_at_the_first_connection(tmp_path: Path) -> None:
    """Its own launcher, its own variables; the connection that woke us is the first that we serve."""
    site = Site(tmp_path)
    port = site.collector.ports[0]
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=syslog_tls", "-E", "PYTHONPATH"]
    run = [*site.collector.program(), "run", "-c", str(site.collector.config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    launcher = ServiceProcess("ndcollector", [*command, *run], directory=tmp_path, environment=environment)
    with launcher:
        launcher.wait_until(lambda: "Listening on" in launcher.log.read_text(), "socket")
        site.send(2)
        launcher.wait_until(lambda: site.collector._lines() == 2, "lines in the output")
        assert "'127.0.0.1'" in launcher.log.read_text()
    assert "taking over sockets" in launcher.log.read_text()


class TestWhatIsTaken:
    """Which sockets are served, and which are not."""

    async def test_only_the_same_address_is_served_through_a_held_socket(self, held: socket.socket) -> None:
        """Another port is opened."""
        inherited = Inherited()
        inherited.add([("syslog_tls", held.dup())])
        port = held.getsockname()[1]
        with await bind(Listen("127.0.0.1", port), held=inherited) as found:
            assert found.getsockname() == held.getsockname()
        first = socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)[0][0]
        if first == socket.AF_INET:  # some hosts files put ::1 first, and that is another address
            with await bind(Listen("localhost", port), held=inherited) as again:  # found by what the name stands for
                assert again.getsockname() == held.getsockname()
        with await bind(Listen("127.0.0.1", 0), held=inherited) as other:
            assert other.getsockname() != held.getsockname()
        inherited.close()

    async def test_an_address_beside_a_held_one_is_refused_with_what_to_do(self, held: socket.socket) -> None:
        """`ss` would name systemd, and nobody would know why."""
        inherited = Inherited()
        inherited.add([("syslog_tls", held.dup())])
        port = held.getsockname()[1]
        with pytest.raises(OSError, match=rf"systemd holds 127\.0\.0\.1:{port}: the socket unit and the configuration"):
            await bind(Listen("0.0.0.0", port), held=inherited)
        inherited.close()

    def test_a_second_socket_for_an_address_is_closed_and_said(self, caplog: pytest.LogCaptureFixture) -> None:
        """ReusePort=yes in two units: half of the connections would come to a socket that nobody serves."""
        with socket.create_server(("127.0.0.1", 0), reuse_port=True) as first:
            again = socket.create_server(first.getsockname(), reuse_port=True)
            inherited = Inherited()
            inherited.add([("one", first.dup()), ("two", again)])
            assert again.fileno() == -1
            assert "one socket unit for each address" in caplog.text
            inherited.close()

    def test_a_number_of_descriptors_that_is_not_true_is_said(self) -> None:
        """Here 1 of 3 is there."""
        code = (
            "import logging, os, socket\n"
            "logging.basicConfig()\n"
            "os.dup2(socket.create_server(('127.0.0.1', 0)).detach(), 3)\n"
            "os.closerange(4, 10)\n"
            "from ndagent.core.inherited import take_over\n"
            "environ = {'LISTEN_FDS': '3', 'LISTEN_PID': str(os.getpid()), 'LISTEN_FDNAMES': 'a:b'}\n"
            "print([name for name, _ in take_over(environ)])\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout == "['a']\n"
        assert "b, which was inherited, is of no use and closed: descriptor 4: Bad file descriptor" in done.stderr

    def test_what_cannot_be_served_is_closed_and_said(self, caplog: pytest.LogCaptureFixture) -> None:
        """Each with what is wrong with it."""
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        inherited = Inherited()
        inherited.add([("udp", datagrams), ("silent", silent), ("both", both)])
        assert [sock.fileno() for sock in (datagrams, silent, both)] == [-1, -1, -1]
        assert [word in caplog.text for word in ("only TCP", "Accept=no", "BindIPv6Only=ipv6-only")] == [True] * 3
        inherited.tell_unused()
        assert len(caplog.records) == 3

    @pytest.mark.parametrize("pid", ["", "1"])
    def test_variables_for_another_process_are_not_ours(self, pid: str) -> None:
        """A child inherits its parent's environment; the descriptors are not sockets of its own."""
        environ = {"LISTEN_FDS": "1", "LISTEN_PID": pid, "LISTEN_FDNAMES": "x", "PATH": "/bin"}
        assert take_over(environ) == []
        assert environ == {"PATH": "/bin"}

    def test_no_child_of_ours_gets_them(self, held: socket.socket) -> None:
        """It would hold the address after we are gone."""
        code = (
            "import os, subprocess, sys\n"
            f"os.dup2({held.fileno()}, 3)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "from ndagent.core.inherited import take_over\n"
            "[(name, sock)] = take_over(os.environ)\n"
            "child = 'import os; print(os.path.exists(\"/proc/self/fd/3\"), \"LISTEN_FDS\" in os.environ)'\n"
            "subprocess.run([sys.executable, '-c', child], close_fds=False)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, pass_fds=[held.fileno()], check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert done.stdout.split() == ["False", "False"]
