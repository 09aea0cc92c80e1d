"""Events as agents make them, by the inputs' own code, and then through the decoder as at a collector.

What is read: files of every kind written here, audit records and journal entries in the form that auditd and journalctl
write them, and this machine's own counters.
"""

import asyncio
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil

from ndagent.core.metrics import Metrics
from ndagent.inputs import HostFacts, InputContext
from ndagent.inputs.ecs_batch import base_fields
from ndagent.inputs.file_events import Events
from ndagent.inputs.host_metrics import Config, build
from ndagent.inputs.journald_cursor import Cursor
from ndagent.inputs.journald_event import event_line, gap_line
from ndagent.inputs.journald_export import ExportParser
from ndagent.wire import auditd_ecs
from ndagent.wire.auditd_join import Joiner
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section, pack_body

sys.path.insert(0, str(Path(__file__).parent / "inputs"))  # its files are no package
from file_site import HOST as FILE_HOST
from file_site import Memory, running

AGENT = "abcdefghijklmnop"
SPOOL = "k3v9"
CREATED = "2026-11-25T12:00:00.000000Z"
NOON_NS = 1_795_608_000_000_000_000
HOST = HostFacts(hostname="web-1", name="web-1")

AUDIT = rb"""
node=db-7 type=SYSCALL msg=audit(1364481363.243:24287): arch=c000003e syscall=2 success=no exit=-13 items=1 ppid=2686 pid=3538 auid=1000 uid=1001 gid=1000 euid=0 suid=2 fsuid=3 egid=4 sgid=5 fsgid=6 tty=pts0 ses=1 comm="cat" exe="/bin/cat" key="sshd_config"
node=db-7 type=CWD msg=audit(1364481363.243:24287):  cwd="/home/shadowman"
node=db-7 type=PATH msg=audit(1364481363.243:24287): item=0 name="/etc/ssh/sshd_config" inode=409248 dev=fd:00 mode=0100600 ouid=0 ogid=0 rdev=00:00 nametype=NORMAL
node=db-7 type=PROCTITLE msg=audit(1364481363.243:24287): proctitle=636174002F6574632F7373682F737368645F636F6E666967
type=SYSCALL msg=audit(1700000000.001:7): arch=c00000b7 syscall=221 success=yes exit=0 ppid=1 pid=2 auid=1000 uid=0 gid=0 euid=9 suid=9 fsuid=9 egid=9 sgid=9 fsgid=9 comm="id" exe="/usr/bin/id" key=(null)~ARCH=aarch64 SYSCALL=execve AUID="alice" UID="root" GID="root" EUID="bob" SUID="bob" FSUID="bob" EGID="bob" SGID="bob" FSGID="bob"
type=EXECVE msg=audit(1700000000.001:7): argc=2 a0="id" a1="-u"
type=SYSCALL msg=audit(1700000000.002:8): arch=c000003e syscall=42 success=yes exit=0 ppid=1 pid=3 uid=0 gid=0 comm="curl" exe="/usr/bin/curl"
type=SOCKADDR msg=audit(1700000000.002:8): saddr=020001BBC00002010000000000000000
type=SYSCALL msg=audit(1700000000.003:9): arch=c000003e syscall=43 success=yes exit=0 ppid=1 pid=3 uid=0 gid=0 comm="sshd" exe="/usr/sbin/sshd"
type=SOCKADDR msg=audit(1700000000.003:9): saddr=02000016C00002010000000000000000
type=USER_LOGIN msg=audit(1700000000.004:10): pid=4 uid=0 auid=1000 ses=1 msg='op=login acct="alice" exe="/usr/sbin/sshd" hostname=gate.example addr=192.0.2.7 terminal=ssh res=success'
type=USER_CMD msg=audit(1700000000.005:11): pid=5 uid=1000 auid=1000 ses=1 msg='cwd="/root" cmd="id" exe="/usr/bin/sudo" terminal=pts/0 res=failed'
type=ADD_GROUP msg=audit(1700000000.006:12): pid=6 uid=0 auid=1000 ses=1 msg='op=add-group grp="wheel" id=1002 exe="/usr/sbin/groupadd" hostname=? addr=? res=success'
type=SERVICE_START msg=audit(1700000000.007:13): pid=1 uid=0 auid=4294967295 ses=4294967295 msg='unit=cron comm="systemd" exe="/usr/lib/systemd/systemd" hostname=? addr=? terminal=? res=success'
no audit record at all
type=CWD msg=audit(1700000000.008:14):  cwd="/caf\xe9"
""".strip().replace(b"~", b"\x1d")  # noqa: E501 - as the kernel writes it

JOURNAL: tuple[Mapping[str, bytes], ...] = (
    {
        "MESSAGE": b"Accepted publickey for alice", "PRIORITY": b"6", "SYSLOG_FACILITY": b"10", "SYSLOG_PID": b"12",
        "SYSLOG_IDENTIFIER": b"sshd", "_PID": b"12", "_UID": b"0", "_GID": b"0", "_AUDIT_LOGINUID": b"1000",
        "_EXE": b"/usr/sbin/sshd", "_CMDLINE": b"sshd: alice", "_SYSTEMD_UNIT": b"ssh.service", "_BOOT_ID": b"b" * 32,
        "_SYSTEMD_USER_UNIT": b"x.service", "_SYSTEMD_SLICE": b"system.slice", "_TRANSPORT": b"syslog",
        "_HOSTNAME": b"web-1", "MESSAGE_ID": b"c" * 32, "CODE_FILE": b"src/a.c", "CODE_LINE": b"7", "CODE_FUNC": b"f",
        "_SOURCE_REALTIME_TIMESTAMP": b"1700000000000000",
    },
    {"MESSAGE": b"caf\xe9 " + b"x" * 3000, "SELF_MADE": b"1"},
    {},
)  # fmt: skip


def audit_lines() -> Iterator[bytes]:
    """The audit log above."""
    joiner = Joiner(timeout_seconds=2.0, max_open_events=100, max_open_bytes=2**20)
    for joined in joiner.add(AUDIT.split(b"\n"), 0.0) + joiner.flush():
        for keep in (False, True):
            yield auditd_ecs.event_line(joined, base=base_fields(HOST), created=CREATED, keep_original=keep)


def journal_lines() -> Iterator[bytes]:
    """The entries above, and a hole in the journal."""
    parser = ExportParser(max_value_bytes=2000)
    for number, fields in enumerate(JOURNAL):
        cursor = f"s={'5' * 32};i={number:x};b={'b' * 32};m=1;t=1;x=1"
        head = b"__CURSOR=%b\n__REALTIME_TIMESTAMP=1700000000000000\n" % cursor.encode()
        binary = (b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(it)), it) for name, it in fields.items())
        for entry in parser.feed(head + b"".join(binary) + b"\n"):
            for everything in (False, True):
                yield event_line(entry, base=base_fields(HOST), created=CREATED, all_fields=everything)
    after = Cursor.parse(f"s={'5' * 32};i=1;b={'b' * 32};m=1;t=1;x=1")
    assert after is not None
    for missing in (None, 3):
        yield gap_line(base=base_fields(HOST), created=CREATED, after=after, missing=missing)


async def file_lines(directory: Path) -> list[bytes]:
    """Plain lines, long ones, bytes that are no text, syslog with and without its PRI, and the word of a loss."""
    (directory / "plain.log").write_bytes(b"one\n" + b"x" * 300 + b"\n" + b"caf\xe9\n" + b"after\n")
    (directory / "syslog.log").write_bytes(
        b'Nov 25 12:00:00 web-1 sshd[12]: a\n<34>1 2026-11-25T12:00:00Z fw su 7 ID47 [a@1 b="c"] m\nno syslog\n'
        b"<34>Nov 25 12:00:00 web-1 su: b\n"
    )
    memory = Memory()
    async with running(memory, directory / "plain.log", max_line_bytes=256) as site:
        await site.until(lambda: "after" in memory.messages)
    async with running(memory, directory / "syslog.log", parse="syslog", timezone="UTC") as site:
        await site.until(lambda: "b" in memory.messages)
    trouble = Events(FILE_HOST, dataset="file").trouble(path="/x", message="m", offset=7, now=CREATED.encode())
    return [trouble] + [line for batch in memory.batches for line in b"".join(batch.payload).splitlines(keepends=True)]


def metric_lines() -> list[bytes]:
    """Two rounds on this machine: the second has rates."""
    settings = Config(processes={"top": 5, "command_line": True})
    plug = build("host_metrics", settings, InputContext(Path(), Metrics(), time.time, _Nothing(), HOST))
    plug._rounds.prime(monotonic=time.monotonic())
    end = time.process_time() + 0.2
    while time.process_time() < end:
        psutil.cpu_times()
    return [*plug._lines(time.time()), *plug._lines(time.time())]


def decoded(lines: list[bytes], *, stream: str, skew: float = 0.0, flags: Flags = Flags.NONE) -> list[dict[str, Any]]:
    """What the agent's spool and then the collector, by the agent's certificate, make of them."""
    sent = _decode(lines, Origin("file", "web-1", 0), stream=stream, spool_id=SPOOL)
    origin = Origin(
        "mqtt", "192.0.2.9", 40000, subject=f"CN={AGENT}", serial="0A", names=(f"URI:nd:agent:{AGENT}",),
        spool_id=SPOOL, clock_skew_seconds=skew,
    )  # fmt: skip
    return [orjson.loads(line) for line in _decode(sent, origin, stream=stream, spool_id="z9", flags=flags)]


def _decode(
    lines: list[bytes], origin: Origin, *, stream: str, spool_id: str, flags: Flags = Flags.NONE
) -> list[bytes]:
    payload = b"".join(lines)
    section = Section(origin, Framing.LF, flags, len(payload), len(lines))
    body = b"".join(pack_body(Batch(stream, "ecs", NOON_NS, [section], [payload])))
    decoder = make_decoder(DecodeSettings(observer_name="c"))
    batch = decoder.decode(body, stream=stream, spool_id=spool_id, sequence=1, received_at_ns=NOON_NS)
    return batch.lines()


def security_events(directory: Path) -> list[dict[str, Any]]:
    """Of every input that makes them, with and without a wrong clock, and without acknowledgement."""
    lines = [*audit_lines(), *journal_lines(), *asyncio.run(file_lines(directory))]
    found = decoded(lines, stream="security_events")
    found += decoded(lines, stream="security_events", skew=86400.0)
    return found + decoded([*lines, b"no JSON\n"], stream="security_events", flags=Flags.UNACKNOWLEDGED)


def metric_events() -> list[dict[str, Any]]:
    """Of the host_metrics input."""
    return decoded(metric_lines(), stream="metrics")


class _Nothing:
    """No positions: host_metrics has none."""

    def last(self, input_name: str) -> bytes | None:
        """Never any."""
        return None
