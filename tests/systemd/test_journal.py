"""Log lines in a real journal: the sentence for people, the fields for machines, and nobody waits for it."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_process import ROOT, CollectorProcess
from collector_site import Site
from services.journald import Journal, need_journald

from ndagent.core import log as logs
from ndagent.core import messages
from ndagent.core.journal import _INPUT_MODULES, MAX_FIELD_BYTES, MAX_MESSAGE_BYTES, MAX_WAITING, JournalHandler, pack

NAMESPACE = (
    'mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind "$1" /run/systemd/journal && '
    'export JOURNAL_STREAM="$(stat -L -c %d:%i /proc/self/fd/2)" && shift && exec "$@"'
)
"""What systemd does for a service: journald's socket is at its place, and stderr is said to be the journal."""


CATALOG_NAMESPACE = (
    "mount -t tmpfs tmpfs /var/lib && mkdir -p /var/lib/systemd/catalog && "
    'mount --bind "$1" /var/lib/systemd/catalog && shift && exec "$@"'
)
"""The database has one place, whatever journalctl is told."""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short name (sockets), and journalctl in PATH."""
    with tempfile.TemporaryDirectory(prefix="nd-journal-") as directory:
        need_journald(Path(directory), monkeypatch)
        yield Path(directory)


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    """A journald of the test's own."""
    with Journal(place / "journald") as running:
        yield running


@pytest.fixture
def handler(place: Path) -> Iterator[JournalHandler]:
    """Speaks to that journald, or to one that is not there."""
    made = JournalHandler("ndcollector", path=str(place / "journald/socket/socket"))
    made.inputs, made.outputs = frozenset({"syslog_tls", "kafka"}), frozenset({"siem", "kafka"})
    yield made
    made.close()


def entries(journal: Journal, *words: str) -> list[dict[str, Any]]:
    """What is in the journal, oldest first."""
    command = ["journalctl", f"--directory={journal.volatile}", "--output=json", "--all", "--no-pager", *words]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in shown.splitlines()]


def record(message: str, name: str = "app", level: int = logging.WARNING, **fields: object) -> logging.LogRecord:
    """As a logger makes it."""
    made = logging.LogRecord(name, level, str(ROOT / "ndagent/core/part.py"), 42, message, (), None, "work")
    vars(made).update(fields)
    return made


@pytest.mark.service
class TestInARealJournal:
    """systemd-journald, read with journalctl."""

    def test_a_line_is_a_sentence_with_fields_beside_it(self, journal: Journal, handler: JournalHandler) -> None:
        """What a terminal shows is MESSAGE; what was given is a field of its own, too."""
        fields = {**messages.PEER_REFUSED, "peer": "192.0.2.7", "reason": "no_certificate", "silenced": 3}
        handler.handle(record("refused", "syslog_tls", **fields))
        journal.wait_for("syslog_tls: refused  peer=192.0.2.7  reason=no_certificate  silenced=3")
        (entry,) = entries(journal, "ND_ORIGIN=192.0.2.7")
        wanted = {
            "PRIORITY": "4", "SYSLOG_IDENTIFIER": "ndcollector", "LOGGER": "syslog_tls", "ND_INPUT": "syslog_tls",
            "MESSAGE_ID": messages.PEER_REFUSED["message_id"], "ND_PEER": "192.0.2.7", "ND_REASON": "no_certificate",
            "ND_SILENCED": "3", "CODE_FILE": str(ROOT / "ndagent/core/part.py"), "CODE_LINE": "42", "CODE_FUNC": "work",
        }  # fmt: skip
        assert {name: entry.get(name) for name in wanted} == wanted
        assert "ND_OUTPUT" not in entry

    def test_a_traceback_is_part_of_its_entry(self, journal: Journal, handler: JournalHandler) -> None:
        """One entry, not fifty."""
        try:
            int("bug")
        except ValueError:
            handler.handle(record("failed", exc_info=sys.exc_info()))
        handler.handle(record("next"))
        journal.wait_for("app: next")
        (entry,) = entries(journal, "CODE_LINE=42", "--grep=failed")
        assert entry["MESSAGE"].startswith("app: failed\nTraceback")
        assert entry["MESSAGE"].endswith("base 10: 'bug'")

    def test_an_entry_too_large_for_a_datagram_arrives_whole(self, journal: Journal, handler: JournalHandler) -> None:
        """Through a sealed memory file; what is beyond our own limits is cut."""
        large = {f"part_{number}": "x" * (2 * MAX_FIELD_BYTES) for number in range(60)}
        handler.handle(record("y" * (2 * MAX_MESSAGE_BYTES), **large))
        handler.handle(record("next"))
        journal.wait_for("app: next")
        entry, _ = entries(journal, "SYSLOG_IDENTIFIER=ndcollector")
        assert len(entry["MESSAGE"]) == MAX_MESSAGE_BYTES
        assert {len(entry[f"ND_PART_{number}"]) for number in range(60)} == {MAX_FIELD_BYTES}

    def test_what_is_said_while_journald_is_away_comes_when_it_is_back(
        self, journal: Journal, handler: JournalHandler
    ) -> None:
        """In order, and without another line to push it."""
        handler.handle(record("before"))
        journal.wait_for("app: before")
        journal.stop()
        for number in range(5):
            handler.handle(record(f"number {number}"))
        journal.start()
        journal.wait_for("app: number 4")
        said = [entry["MESSAGE"] for entry in entries(journal, "SYSLOG_IDENTIFIER=ndcollector")]
        assert said == ["app: before", *(f"app: number {number}" for number in range(5))]

    def test_a_daemon_that_systemd_started_logs_to_the_journal(self, journal: Journal, place: Path) -> None:
        """Start to stop; and `journalctl -x` says what a message means."""
        site = Site(place / "site")
        site.collector = Journaled(place, site.collector)
        with site.collector, socket.create_connection(("127.0.0.1", site.collector.ports[0])) as peer:
            peer.sendall(b"<34>1 this is no TLS\n")
            peer.settimeout(20)
            peer.recv(100)
        found = {entry.get("MESSAGE_ID"): entry for entry in entries(journal, "SYSLOG_IDENTIFIER=ndcollector")}
        refused = found[messages.PEER_REFUSED["message_id"]]
        wanted = {"ND_INPUT": "syslog_tls", "ND_REASON": "not_tls", "ND_ORIGIN": "127.0.0.1"}
        assert {name: refused[name] for name in wanted} == wanted
        assert found[messages.READY["message_id"]]["MESSAGE"] == "app: ready: syslog_tls → archive"
        assert messages.STOPPED["message_id"] in found
        assert site.collector.process.log.read_text() == "", "nothing is said twice"
        explained = explain(journal, place, messages.PEER_REFUSED["message_id"])
        assert "127.0.0.1 did not get in: not_tls." in explained
        assert "journalctl -u" in explained


class Journaled(CollectorProcess):
    """Started with journald's socket where a service finds it; the same files as another's."""

    def __init__(self, place: Path, like: CollectorProcess) -> None:
        vars(self).update(vars(like))
        self._socket = place / "journald/socket"

    def program(self) -> list[str]:
        return ["unshare", "-m", "sh", "-c", NAMESPACE, "sh", str(self._socket), *super().program()]


def explain(journal: Journal, place: Path, message_id: str) -> str:
    """`journalctl -x` with our catalogue."""
    catalogs = place / "root/usr/lib/systemd/catalog"
    catalogs.mkdir(parents=True)
    shutil.copy(ROOT / "systemd/ndcollector.catalog", catalogs)
    subprocess.run(["journalctl", "--update-catalog", f"--root={place / 'root'}"], check=True)
    made = place / "root/var/lib/systemd/catalog"
    command = ["journalctl", f"--directory={journal.volatile}", "-x", f"MESSAGE_ID={message_id}", "--no-pager"]
    namespace = ["unshare", "-m", "sh", "-c", CATALOG_NAMESPACE, "sh", str(made), *command]
    return subprocess.run(namespace, capture_output=True, text=True, check=True).stdout


class TestWithoutWaiting:
    """journald's queue is full: nobody reads it here."""

    @pytest.fixture
    def deaf(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
        """A journald that hangs."""
        monkeypatch.chdir(tmp_path)  # a path below pytest's is too long for sun_path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
            made.bind("journal")
            yield made

    def test_a_journald_that_hangs_stops_nobody_and_what_is_lost_is_told(self, deaf: socket.socket) -> None:
        """Limit: MAX_WAITING; an entry is sent when there is room, in order, and then the count."""
        handler = JournalHandler("ndcollector", path="journal")
        try:
            for number in range(3 * MAX_WAITING):
                handler.handle(record(f"number {number} {'x' * 4000}"))
            assert len(handler._waiting) == MAX_WAITING
            lost = handler._lost
            assert lost > 0
            deaf.settimeout(20)
            heard: list[bytes] = []
            while b"lines are lost" not in b"".join(heard[-1:]):
                heard.append(deaf.recv(65536))
            numbers = [int(entry.split(b"number ")[1].split()[0]) for entry in heard[:-1]]
            assert numbers == list(range(3 * MAX_WAITING - lost))
            assert b"log: %d lines are lost" % lost in heard[-1]
        finally:
            handler.close()

    def test_the_end_of_the_process_does_not_wait_for_it_either(self, deaf: socket.socket) -> None:
        """One last chance, of a second."""
        handler = JournalHandler("ndcollector", path="journal")
        for _ in range(MAX_WAITING):
            handler.handle(record("x" * 4000))
        handler.close()
        handler.close()


class TestWhoSpeaks:
    """Loggers have the names of inputs and outputs."""

    @pytest.mark.parametrize(
        ("name", "file", "field"),
        [
            ("syslog_tls", "ndagent/core/tls_listener.py", "ND_INPUT"),
            ("siem", "ndagent/core/delivery.py", "ND_OUTPUT"),
            ("kafka", "ndcollector/inputs/kafka_group.py", "ND_INPUT"),
            ("kafka", "ndagent/core/batcher.py", "ND_INPUT"),
            ("kafka", "ndagent/core/tcp_listener.py", "ND_INPUT"),
            ("kafka", "ndcollector/outputs/kafka_line.py", "ND_OUTPUT"),
            ("kafka", "ndagent/core/breaker.py", "ND_OUTPUT"),
        ],
    )
    def test_a_plug_that_speaks_is_named(self, name: str, file: str, field: str) -> None:
        """Also where an input and an output have one name."""
        handler = JournalHandler("ndcollector", path="journal")
        handler.inputs, handler.outputs = frozenset({"syslog_tls", "kafka"}), frozenset({"siem", "kafka"})
        made = logging.LogRecord(name, logging.INFO, str(ROOT / file), 1, "x", (), None)
        found = dict(handler._fields(made))
        handler.close()
        assert {key: found.get(key) for key in ("ND_INPUT", "ND_OUTPUT") if key in found} == {field: name}

    def test_each_part_of_the_core_that_speaks_for_a_plug_is_known_as_an_inputs_or_an_outputs(self) -> None:
        """Else a refused sender would stand among the lines of an output that happens to have the input's name."""
        core = (ROOT / "ndagent/core").glob("*.py")
        speaks = {file.stem for file in core if re.search(r"getLogger\((self\._|\w+\.)?name\)", file.read_text())}
        assert speaks == _INPUT_MODULES - {"tls_listener"} | {"breaker", "delivery", "dispatcher"}

    @pytest.mark.parametrize("sender", ["192.0.2.7", "web-1"])
    def test_a_sender_with_a_name_and_an_address_is_found_by_either(self, sender: str) -> None:
        """An operator knows one of them."""
        handler = JournalHandler("ndcollector", path="journal")
        given = list(handler._fields(record("x", agent_id="web-1", address="192.0.2.7")))
        handler.close()
        assert given.count(("ND_ORIGIN", sender)) == 1

    def test_a_name_that_is_no_text_loses_no_line(self) -> None:
        """File names are bytes."""
        handler = JournalHandler("ndagent", path="journal")
        entry = pack(handler._fields(record("cannot read", files=[os.fsdecode(b"caf\xe9")])))
        handler.close()
        assert b'ND_FILES=["caf\\\\udce9"]\n' in entry

    def test_a_line_with_its_own_input_keeps_it(self) -> None:
        """It knows better than its logger."""
        handler = JournalHandler("ndcollector", path="journal")
        handler.outputs = frozenset({"siem"})
        found = dict(handler._fields(record("x", "siem", input="netflow", origin="nd:device:fw-1")))
        handler.close()
        assert (found["ND_INPUT"], found["ND_ORIGIN"]) == ("netflow", "nd:device:fw-1")
        assert "ND_OUTPUT" not in found


def test_the_journal_is_used_only_where_stderr_is_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever reads stderr would miss the lines; and without its socket they stay on stderr."""
    there = tmp_path / "socket"
    there.touch()
    with (tmp_path / "log").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        status = (tmp_path / "log").stat()
        journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        for environ, path, kind in (
            (journal, there, JournalHandler), (journal, tmp_path / "away", logging.StreamHandler),
            ({}, there, logging.StreamHandler), ({"JOURNAL_STREAM": "1:2"}, there, logging.StreamHandler),
        ):  # fmt: skip
            handler = logs.handler_for(environ, "ndcollector", journal=str(path))
            handler.close()
            assert type(handler) is kind
