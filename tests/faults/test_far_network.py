"""The far network fails as it says, and nothing of it is seen in the host's own namespace."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from far_network import FarNetwork, Namespace
from services import fetch
from services.need import need, need_namespace, need_program

_COUNT = """
import socket, sys
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
here.bind(("0.0.0.0", 9))
here.settimeout(20)
print("ready", flush=True)
found = 0
while (data := here.recv(100)) != b"end":
    found += 1
print(found)
"""
_SEND = """
import socket, sys
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(1000):
    there.sendto(b"%d" % number, (sys.argv[1], 9))
for _ in range(200):
    there.sendto(b"end", (sys.argv[1], 9))  # often enough that one arrives
"""
_ANSWERS = """
import socket, sys
with socket.create_connection((sys.argv[1], 7), timeout=float(sys.argv[2])) as there:
    sys.exit(there.recv(1) != b"x")
"""
_SERVE = """
import socket
listening = socket.create_server(("0.0.0.0", 7))
print("ready", flush=True)
while True:
    with listening.accept()[0] as peer:
        peer.sendall(b"x")
"""


@pytest.fixture
def near() -> Iterator[Namespace]:
    need_namespace("--net")
    for program in ("ip", "tc", "nsenter"):
        need_program(program)
    need(fetch.NFTABLES)
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def far(near: Namespace) -> Iterator[FarNetwork]:
    with FarNetwork(near_pid=near.pid) as network:
        yield network


def program(prefix, source: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*prefix, sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE, text=True)


def arrived(near: Namespace, far: FarNetwork) -> int:
    """Of a thousand datagrams that the near side sends."""
    with program(far.prefix, _COUNT) as counting:
        assert counting.stdout is not None
        assert counting.stdout.readline() == "ready\n"
        subprocess.run([*near.prefix, sys.executable, "-c", _SEND, far.far_address], check=True, timeout=20)
        return int(counting.stdout.readline())


def reaches(far: FarNetwork, *, within_seconds: float) -> bool:
    command = [*far.prefix, sys.executable, "-c", _ANSWERS, far.near_address, str(within_seconds)]
    return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0


def test_packets_are_lost_as_often_as_asked_and_not_after(near: Namespace, far: FarNetwork) -> None:
    """30 of 100; the bounds are seven standard deviations wide."""
    assert arrived(near, far) == 1000
    far.lose(percent=30)
    assert 600 < arrived(near, far) < 800
    far.heal()
    assert arrived(near, far) == 1000


def test_a_cut_cable_carries_nothing_and_comes_back(near: Namespace, far: FarNetwork) -> None:
    """Connections are possible again without anybody configuring anything."""
    with program(near.prefix, _SERVE) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline() == "ready\n"
        assert reaches(far, within_seconds=20)
        far.cut()
        assert not reaches(far, within_seconds=0.2)
        far.heal()
        assert reaches(far, within_seconds=20)
        serving.kill()


def test_a_narrow_line_drops_what_does_not_fit(near: Namespace, far: FarNetwork) -> None:
    """Sent from there: 1000 datagrams at once over a line that takes a hundred of them a second."""
    far.narrow(bytes_per_second=5000)
    with program(near.prefix, _COUNT.replace("20", "1")) as counting:
        assert counting.stdout is not None
        assert counting.stdout.readline() == "ready\n"
        subprocess.run([*far.prefix, sys.executable, "-c", _SEND, far.near_address], check=True, timeout=20)
        counted = counting.stdout.readline()
    assert counted == "" or int(counted) < 900


def test_nothing_of_it_is_left_or_seen_outside(near: Namespace) -> None:
    """No link in the namespace that tests run in, and none in the near one once the far one is gone."""
    with FarNetwork(near_pid=near.pid):
        assert "near" not in Path("/proc/net/dev").read_text()
        assert "near" in _links(near)
    assert "near" not in _links(near)


def _links(namespace: Namespace) -> str:
    command = [*namespace.prefix, "cat", "/proc/self/net/dev"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
