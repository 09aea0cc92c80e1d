"""Debian's softflowd as a real exporter: it reads packets from a capture file, or from an interface, and exports flows.

Promises: the packets of `capture` are such that every figure of a flow is known beforehand.
"""

import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from services import fetch
from services.process import ServiceProcess

_ETHERNET = 1  # the capture file's link type


def udp_packet(source: str, destination: str, ports: tuple[int, int], *, payload_bytes: int) -> bytes:
    """An Ethernet frame; IPv4 or IPv6 by the addresses."""
    datagram = struct.pack(">HHHH", *ports, 8 + payload_bytes, 0) + bytes(payload_bytes)
    if ":" in source:
        ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
        return _frame(0x86DD, struct.pack(">IHBB", 6 << 28, len(datagram), 17, 64) + ends + datagram)
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0)
    return _frame(0x0800, head + ends + datagram)


def _frame(kind: int, packet: bytes) -> bytes:
    return bytes.fromhex("02005e005302 02005e005301") + struct.pack(">H", kind) + packet


def capture(path: Path, packets: Iterable[tuple[float, bytes]]) -> Path:
    """A capture file of packets with their Unix times."""
    pieces = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, _ETHERNET)]
    for at, packet in packets:
        second, rest = divmod(round(at * 1_000_000), 1_000_000)
        pieces += [struct.pack("<IIII", second, rest, len(packet), len(packet)), packet]
    path.write_bytes(b"".join(pieces))
    return path


def export(words: Iterable[str | Path], directory: Path, *, version: int, port: int) -> ServiceProcess:
    """softflowd in the foreground, exporting to `port`; it ends by itself behind a capture file."""
    fetch.ensure(fetch.SOFTFLOWD)
    command: list[str | Path] = [
        fetch.SOFTFLOWD.path(fetch.SOFTFLOWD.program), "-d", "-v", str(version), "-n", f"127.0.0.1:{port}", "-6",
        "-p", directory / "softflowd.pid", "-c", directory / "softflowd.ctl", *words,
    ]  # fmt: skip
    return ServiceProcess("softflowd", command, directory=directory, environment=fetch.SOFTFLOWD.environment())
