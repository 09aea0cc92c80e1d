"""Audit records: golden vectors as kernel and audit-userspace write them, and properties over arbitrary bytes."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.auditd import arguments, enriched_of, fields_of, parse_line, socket_address
from ndagent.wire.auditd_ecs import event_line
from ndagent.wire.auditd_join import MAX_RECORDS, Joiner
from ndagent.wire.auditd_syscalls import SYSCALLS

BASE = {"ecs": {"version": "8.17.0"}, "host": {"hostname": "here", "name": "here"}}
NOW = "2026-11-25T12:00:00.000000Z"


def joiner(**limits: Any) -> Joiner:
    return Joiner(**{"timeout_seconds": 2.0, "max_open_events": 100, "max_open_bytes": 2**20, **limits})


def events_of(text: str | bytes, *, keep_original: bool = False) -> list[dict[str, Any]]:
    """All events of these lines, open ones flushed."""
    data = text if isinstance(text, bytes) else text.strip("\n").encode()
    one = joiner()
    done = one.add(data.split(b"\n"), 0.0) + one.flush()
    return [json.loads(event_line(each, base=BASE, created=NOW, keep_original=keep_original)) for each in done]


OPEN_DENIED = """
type=SYSCALL msg=audit(1364481363.243:24287): arch=c000003e syscall=2 success=no exit=-13 a0=7fffd19c5592 a1=0 a2=7fffd19c4b50 a3=a items=1 ppid=2686 pid=3538 auid=1000 uid=1001 gid=1000 euid=0 suid=0 fsuid=0 egid=1000 sgid=1000 fsgid=1000 tty=pts0 ses=1 comm="cat" exe="/bin/cat" subj=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023 key="sshd_config"
type=CWD msg=audit(1364481363.243:24287):  cwd="/home/shadowman"
type=PATH msg=audit(1364481363.243:24287): item=0 name="/etc/ssh/sshd_config" inode=409248 dev=fd:00 mode=0100600 ouid=0 ogid=0 rdev=00:00 obj=system_u:object_r:etc_t:s0 nametype=NORMAL
type=PROCTITLE msg=audit(1364481363.243:24287): proctitle=636174002F6574632F7373682F737368645F636F6E666967
"""  # noqa: E501 - as the kernel writes it


def test_a_denied_open() -> None:
    """SYSCALL, CWD, PATH and PROCTITLE are one event: who, with what, on what, and that it failed."""
    (event,) = events_of(OPEN_DENIED)
    assert event["@timestamp"] == "2013-03-28T14:36:03.243Z"
    assert event["event"] == {
        "kind": "event", "module": "auditd", "dataset": "auditd.log", "created": NOW, "sequence": 24287,
        "action": "opened-file", "category": ["file"], "type": ["access"], "outcome": "failure",
    }  # fmt: skip
    assert event["user"] == {
        "id": "1001", "group": {"id": "1000"}, "audit": {"id": "1000"}, "effective": {"id": "0"}, "saved": {"id": "0"},
        "filesystem": {"id": "0"},
    }  # fmt: skip
    assert event["process"] == {
        "pid": 3538, "parent": {"pid": 2686}, "executable": "/bin/cat", "name": "cat",
        "working_directory": "/home/shadowman", "title": "cat /etc/ssh/sshd_config",
    }  # fmt: skip
    assert event["file"] == {"path": "/etc/ssh/sshd_config", "inode": "409248", "mode": "0600", "uid": "0", "gid": "0"}
    assert event["auditd"]["syscall"]["key"] == "sshd_config"
    assert event["auditd"]["syscall"]["arch"] == "x86_64"
    assert event["auditd"]["types"] == ["SYSCALL", "CWD", "PATH", "PROCTITLE"]
    assert event["message"] == "uid 1001 opened file /etc/ssh/sshd_config: failed"


def test_an_enriched_line_has_its_names() -> None:
    """log_format=ENRICHED: behind 0x1d stand the names that auditd looked up."""
    (event,) = events_of(
        b"type=SYSCALL msg=audit(1700000000.001:7): arch=c00000b7 syscall=221 success=yes exit=0 ppid=1 pid=2 "
        b'auid=1000 uid=0 gid=0 euid=0 comm="id" exe="/usr/bin/id" key=(null)\x1d'
        b'ARCH=aarch64 SYSCALL=execve AUID="alice" UID="root" GID="root" EUID="root"\n'
        b'type=EXECVE msg=audit(1700000000.001:7): argc=3 a0="id" a1=2D2D6E616D652077697468 a2="-u"\n'
        b"type=EOE msg=audit(1700000000.001:7): "
    )
    assert event["user"] == {
        "id": "0",
        "name": "root",
        "group": {"id": "0", "name": "root"},
        "audit": {"id": "1000", "name": "alice"},
    }
    assert event["process"]["args"] == ["id", "--name with", "-u"]
    assert event["process"]["args_count"] == 3
    assert (event["event"]["action"], event["event"]["outcome"]) == ("executed", "success")
    assert "key" not in event["auditd"]["syscall"]
    assert event["message"] == "root executed /usr/bin/id"


def test_a_failed_login() -> None:
    """A program's own record is one event at once; the account is the one it is about."""
    (event,) = events_of(
        "type=USER_LOGIN msg=audit(1530000000.123:456): pid=811 uid=0 auid=4294967295 ses=4294967295 "
        'msg=\'op=login acct=28756E6B6E6F776E207573657229 exe="/usr/sbin/sshd" hostname=? addr=203.0.113.9 '
        "terminal=sshd res=failed'"
    )
    assert event["event"]["category"] == ["authentication"]
    assert event["event"]["outcome"] == "failure"
    assert event["user"] == {"name": "(unknown user)"}
    assert event["source"] == {"ip": "203.0.113.9", "address": "203.0.113.9"}
    assert event["process"] == {"pid": 811, "executable": "/usr/sbin/sshd"}
    assert event["auditd"]["user_login"]["terminal"] == "sshd"


def test_a_connection_has_its_address() -> None:
    """SOCKADDR is a struct in hex: family in host order, port in network order."""
    (event,) = events_of(
        'type=SYSCALL msg=audit(1700000000.500:9): arch=c000003e syscall=42 success=yes exit=0 pid=5 uid=33 '
        'comm="curl" exe="/usr/bin/curl"\n'
        "type=SOCKADDR msg=audit(1700000000.500:9): saddr=020001BBC63364070000000000000000\n"
        'type=PROCTITLE msg=audit(1700000000.500:9): proctitle="curl"'
    )
    assert event["destination"] == {"ip": "198.51.100.7", "port": 443}
    assert event["network"] == {"type": "ipv4", "direction": "egress"}
    assert event["event"]["category"] == ["network"]


def test_interleaved_events_come_apart() -> None:
    """Several processors write at the same time; serial and time say what belongs together."""
    first = OPEN_DENIED.strip("\n").split("\n")
    second = [line.replace(":24287)", ":24288)").replace("/etc/ssh/sshd_config", "/etc/shadow") for line in first]
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    events = events_of("\n".join(mixed))
    assert [(event["event"]["sequence"], event["file"]["path"]) for event in events] == [
        (24287, "/etc/ssh/sshd_config"), (24288, "/etc/shadow"),
    ]  # fmt: skip


def test_same_serial_on_two_nodes_is_two_events() -> None:
    """A log that gathers hosts names them, and so is host.hostname."""
    lines = OPEN_DENIED.strip("\n").split("\n")
    events = events_of("\n".join(f"node={node} {line}" for line in lines for node in ("web-1", "web-2")))
    assert [event["host"]["hostname"] for event in events] == ["web-1", "web-2"]
    assert all(len(event["auditd"]["types"]) == 4 for event in events)


def test_a_denial_of_selinux_is_what_its_event_is_about() -> None:
    """AVC beside SYSCALL: the verdict, and the permissions in braces."""
    (event,) = events_of(
        'type=AVC msg=audit(1364475353.159:24270): avc:  denied  { read write } for  pid=1378 comm="httpd" '
        'name="my file" dev="sda1" ino=12 scontext=a:b:c tcontext=d:e:f tclass=file permissive=0\n'
        "type=SYSCALL msg=audit(1364475353.159:24270): arch=c000003e syscall=2 success=no exit=-13 pid=1378 uid=48 "
        'comm="httpd" exe="/usr/sbin/httpd"'
    )
    assert event["event"]["action"] == "checked-mac-access"
    assert event["event"]["outcome"] == "failure"
    assert event["auditd"]["avc"]["seperms"] == ["read", "write"]
    assert event["auditd"]["avc"]["name"] == "my file"
    assert event["process"]["executable"] == "/usr/sbin/httpd"


def test_a_rename_is_told_by_its_new_name() -> None:
    """Of the PATH records the parents are directories; the last object is what came out. Relative means below cwd."""
    head = "msg=audit(1700000001.000:11):"
    (event,) = events_of(
        f"type=SYSCALL {head} arch=c000003e syscall=82 success=yes pid=1 uid=0\n"
        f'type=CWD {head} cwd="/srv"\n'
        f'type=PATH {head} item=0 name="/srv" inode=1 nametype=PARENT\n'
        f'type=PATH {head} item=1 name="/srv" inode=1 nametype=PARENT\n'
        f'type=PATH {head} item=2 name="old" inode=2 nametype=DELETE\n'
        f"type=PATH {head} item=3 name=6E65 inode=2 nametype=CREATE"
    )
    assert event["file"]["path"] == "/srv/ne"
    assert len(event["auditd"]["path"]) == 4


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'acct="cafe"', {"acct": "cafe"}),  # quoted: text
        (b"acct=63616665", {"acct": "cafe"}),  # not: hex
        (b"unit=cafe", {"unit": "cafe"}),  # never encoded
        (b"comm=C3A9", {"comm": "é"}),
        (b"key=6B31016B32", {"key": ["k1", "k2"]}),
        (b"key=(null) tty=(none) addr=?", {}),
        (b"a=1 a=2 a=3", {"a": ["1", "2", "3"]}),
        (b'op=unclosed acct="bob', {"op": "unclosed", "acct": '"bob'}),
        (
            b"pid=1 msg='op=PAM:auth grantors=? acct=\"x y\" res=success'",
            {"pid": "1", "op": "PAM:auth", "acct": "x y", "res": "success"},
        ),
        (b"op=x \xff=y name=FF", {"op": "x", "name": "\ufffd"}),
    ],
)  # fmt: skip
def test_values(body: bytes, expected: dict[str, Any]) -> None:
    """Each way a value is written."""
    record = parse_line(b"type=X msg=audit(1.000:1): " + body)
    assert record is not None
    assert fields_of(record) == expected


def test_long_arguments_come_in_pieces() -> None:
    """Over 7500 bytes the kernel splits an argument, even inside of a character, over records."""
    head = b"type=EXECVE msg=audit(1.000:1): "
    records = [
        parse_line(head + b'argc=3 a0="x" a1_len=8 a1[0]=61C3'),
        parse_line(head + b'a1[1]=A962 a2="last"'),
    ]
    assert arguments([one for one in records if one], limit=10) == ["x", "aéb", "last"]
    assert arguments([one for one in records if one], limit=1) == ["x"]


@pytest.mark.parametrize(
    ("saddr", "expected"),
    [
        ("0A0000500000000020010DB800000000000000000000000100000000",
         {"family": "ipv6", "address": "2001:db8::1", "port": 80}),
        ("01002F72756E2F782E736F636B00", {"family": "unix", "path": "/run/x.sock"}),
        ("0100006D61676963", {"family": "unix", "path": "@magic"}),
        ("0100", {"family": "unix", "path": ""}),
        ("100000000000000000000000", {"family": "16"}),
        ("02000050", {}), ("02", {}), ("zz", {}), ("", {}),
    ],
)  # fmt: skip
def test_socket_addresses(saddr: str, expected: dict[str, Any]) -> None:
    """The families, and what is cut short."""
    assert socket_address(saddr) == expected


def test_unreadable_lines_are_events() -> None:
    """Nothing is dropped because we do not understand it; bytes that are no text stay exact."""
    first, second = events_of(b"what is this\ntype=SYSCALL msg=audit(\xff")
    assert first["message"] == first["event"]["original"] == "what is this"
    assert first["tags"] == second["tags"] == ["_parse_failure"]
    assert first["error"]["message"]
    assert second["event"]["original_base64"]


def test_the_original_on_request() -> None:
    """All lines of the event, as they were."""
    (event,) = events_of(OPEN_DENIED, keep_original=True)
    assert event["event"]["original"] == OPEN_DENIED.strip("\n")


def test_syscall_numbers_are_the_kernels() -> None:
    """Against this machine's own header, where it has one."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    theirs = {number: name for name, number in re.findall(r"__NR_(\w+) (\d+)", header.read_text())}
    ours = SYSCALLS["c000003e"]
    assert {number: theirs[number] for number in ours if number in theirs} == {
        number: name for number, name in ours.items() if number in theirs
    }


# ---- joining


def record(serial: int, kind: str = "SYSCALL", *, at: float = 100.0, pad: int = 0) -> bytes:
    return b"type=%b msg=audit(%.3f:%d): x=%b" % (kind.encode(), at, serial, b"y" * pad)


def test_an_event_without_an_end_is_whole_after_the_timeout() -> None:
    """Old kernels write neither PROCTITLE nor, into the file, EOE."""
    one = joiner()
    assert one.add([record(1), record(1, "PATH")], now=10.0) == []
    assert one.expire(now=11.9) == []
    (done,) = one.expire(now=12.0)
    assert [found.type for found in done.records] == ["SYSCALL", "PATH"]
    assert not done.is_cut


def test_younger_records_end_an_event() -> None:
    """So a backlog of hours does not wait for clocks."""
    one = joiner()
    assert one.add([record(1, at=100.0), record(2, at=101.9)], now=0.0) == []
    (done,) = one.add([record(3, at=102.0)], now=0.0)
    assert done.records[0].serial == 1


def test_the_table_is_bounded_in_events() -> None:
    """At the limit nothing happens; one more, and the oldest goes out, marked."""
    one = joiner(max_open_events=3)
    assert one.add([record(1), record(2), record(3)], now=0.0) == []
    (done,) = one.add([record(4)], now=0.0)
    assert (done.records[0].serial, done.is_cut) == (1, True)
    assert b'"_incomplete"' in event_line(done, base=BASE, created=NOW, keep_original=False)


def test_the_table_is_bounded_in_bytes() -> None:
    """Likewise."""
    size = len(record(1, pad=100))
    one = joiner(max_open_bytes=2 * size)
    assert one.add([record(1, pad=100), record(2, pad=100)], now=0.0) == []
    (done,) = one.add([record(2, "PATH")], now=0.0)
    assert done.records[0].serial == 1


def test_an_event_is_bounded_in_records() -> None:
    """What comes then is another event of the same serial."""
    one = joiner(max_open_bytes=2**30)
    assert one.add([record(1)] * (MAX_RECORDS - 1), now=0.0) == []
    (done,) = one.add([record(1)], now=0.0)
    assert (len(done.records), done.is_cut, len(one)) == (MAX_RECORDS, True, 0)


def test_open_lines_open_the_events_again() -> None:
    """The restart: what was open is open, and ends with the records that come then."""
    one = joiner()
    one.add([record(1), record(2), record(1, "PATH")], now=0.0)
    two = joiner()
    assert two.add(one.open_lines, now=0.0) == []
    (done,) = two.add([record(1, "EOE")], now=0.0)
    assert [found.type for found in done.records] == ["SYSCALL", "PATH", "EOE"]


_KINDS = st.sampled_from(["SYSCALL", "PATH", "CWD", "EXECVE", "PROCTITLE", "EOE", "USER_LOGIN", "AVC", "SOCKADDR"])
_LINES = st.one_of(
    st.binary(max_size=60).filter(lambda line: b"\n" not in line),
    st.builds(
        lambda kind, serial, at, body: b"type=%b msg=audit(%d.%03d:%d): %b" % (kind.encode(), at, at, serial, body),
        _KINDS, st.integers(0, 5), st.integers(0, 9),
        st.one_of(
            st.binary(max_size=40).filter(lambda body: b"\n" not in body),
            st.sampled_from([
                b"pid=1 uid=0 exe=2F78 msg='acct=\"a\" res=1'", b"saddr=0200", b'a0="x" a1[0]=FF argc=9',
                b"mode=01 name=41",
                b"uid=0 uid=1 pid=2 pid=3 name=A name=B exe=x exe=y", b"syscall=59 arch=c000003e success=yes",
            ]),
        ),
    ),
)  # fmt: skip


@given(st.lists(_LINES, max_size=40), st.integers(1, 5))
def test_every_line_comes_out_once(lines: list[bytes], most: int) -> None:
    """Any bytes become events or parse failures; none is lost, doubled, or more than JSON can say."""
    one = joiner(max_open_events=most)
    done = one.add(lines, now=0.0)
    assert len(one) <= most
    done += one.flush()
    assert sorted(line for joined in done for line in joined.lines) == sorted(lines)
    for joined in done:
        event = json.loads(event_line(joined, base=BASE, created=NOW, keep_original=True))
        assert event["@timestamp"]
        assert isinstance(event["message"], str)
        assert bool(joined.records) != ("_parse_failure" in event.get("tags", []))


@pytest.mark.parametrize("unit", [b'a="', b"a='", b"a={", b"a", b"msg='", b"avc: ", b"avc:  denied { ", b"a[0]=", b"="])
def test_hostile_lines_take_linear_time(unit: bytes) -> None:
    """Eight times the bytes take about eight times as long, not sixty-four."""
    def seconds(size: int) -> float:
        line = b"type=EXECVE msg=audit(1.000:1): " + (unit * size)[:size]
        best = 9.9
        for _ in range(3):
            begun = time.process_time()
            found = parse_line(line)
            assert found is not None
            fields_of(found)
            enriched_of(found)
            arguments([found], limit=9)
            best = min(best, time.process_time() - begun)
        return best

    assert seconds(64_000) < 24 * seconds(8_000) + 0.01
