"""Makes the syslog that the benchmarks send: RFC 5424 of about 226 bytes, numbered so that loss and order show.

Promises: the same arguments give the same bytes; each message carries `n<connection>-<number>` (five and nine digits)
in its structured data, which every contender's output keeps as it stands; device, time, process id, addresses and
counters vary from message to message, so that no parser lives off a cache of one shape.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

_HOSTS = ("fw-edge-%02d.example.net", "web%02d", "10.20.30.%d", "db-%02d.corp.example", "sw-core-%02d")
_APPS = ("sshd", "asa", "nginx", "kernel", "traffic-mgr", "postgres", "CRON", "named")
_TEXTS = (
    "Built outbound TCP connection %d for outside:203.0.113.%d/443 to inside:10.1.2.%d/51234",
    "Failed password for invalid user admin%d from 198.51.100.%d port 22%03d ssh2",
    "query %d: www.example.net IN A from 192.0.2.%d#53%03d took 12 ms, forwarded",
    'connection %d authorized: user=app%d database=main application_name="job-%d"',
    "denied %d bytes from 203.0.113.%d by policy rule-%d (default drop, logged)",
)
_PADDING = "session closed after idle timeout, policy 4711, action: log and alert, duration 0:00:12 bytes 48120"
_VARIANTS = 4093  # prime: walks out of step with every period below


@cache
def _templates() -> list[tuple[bytes, bytes]]:
    """Per variant the message up to the time's fraction, and from there on; holes are %-formats."""
    found = []
    for i in range(_VARIANTS):
        priority = (4 + i % 20) * 8 + i % 8
        second = i % 60
        host = _HOSTS[i % 5] % (i % 90 + 1)
        app = _APPS[i % 8]
        head = f"<{priority}>1 2025-11-23T{i % 24:02d}:{i % 60:02d}:{second:02d}.%06dZ {host} {app} %d ID{i % 40:02d} "
        text = _TEXTS[i % 5] % (i * 7919, i % 254 + 1, i % 199)
        tail = f'[meta@32473 n="n%05d-%09d" zone="z{i % 12}" rule="{i % 300}"] {text} '
        padding = _PADDING[: max(0, 191 + i * 31 % 47 - len(head) - len(tail))]
        found.append((head.encode(), (tail + padding).encode()))
    return found


def messages(connection: int, count: int) -> Iterator[bytes]:
    """`count` messages of one connection, numbered from 0, unframed."""
    templates = _templates()
    for number in range(count):
        head, tail = templates[(number + connection * 17) % _VARIANTS]
        time_and_pid = head % (number * 37 % 1_000_000, 100 + number % 32_000)
        yield time_and_pid + tail % (connection, number)


def octet_counted(message: bytes) -> bytes:
    """RFC 6587 §3.4.1."""
    return b"%d %s" % (len(message), message)


def lf_framed(message: bytes) -> bytes:
    """RFC 6587 §3.4.2."""
    return message + b"\n"


FRAMINGS = {"octet": octet_counted, "lf": lf_framed}


def write(path: Path, *, connection: int, count: int, framing: str) -> Path:
    """The framed messages of one connection as a file; one that stands there already is the same and is kept."""
    if path.exists():
        return path
    frame = FRAMINGS[framing]
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb", buffering=1 << 20) as file:
        file.writelines(frame(message) for message in messages(connection, count))
    return unfinished.rename(path)
