"""The file input on ordinary days: what is there, what comes, what it looks like, and going on after a stop."""

import asyncio
import os

import orjson
import pytest
from file_site import Memory, append, make, running
from pydantic import ValidationError

from ndagent.inputs import file_table
from ndagent.inputs.file import Config
from ndagent.inputs.file_tail import open_as
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import pack_body


@pytest.fixture
def memory():
    return Memory()


async def test_lines_become_events_with_path_offset_and_host(tmp_path, memory):
    """The whole shape, once."""
    log = tmp_path / "app.log"
    append(log, "first", 'second "quoted" ☃')
    async with running(memory, log, clock=lambda: 1_795_633_200.0, dataset="shop.app") as site:
        await site.until_messages("first", 'second "quoted" ☃')
        append(log, "third")
        await site.until_messages("first", 'second "quoted" ☃', "third")
        assert site.value("nd_input_received_events_total") == 3
        assert site.value("nd_input_received_bytes_total") == log.stat().st_size
    now = "2026-11-25T19:00:00.000000Z"
    assert memory.events[1] == {
        "@timestamp": now,
        "ecs": {"version": "8.17.0"},
        "agent": {"type": "ndagent", "version": "0.1.0"},
        "host": {"hostname": "web-1", "name": "web-1.example"},
        "event": {"kind": "event", "created": now, "dataset": "shop.app"},
        "log": {"file": {"path": str(log)}, "offset": 6},
        "message": 'second "quoted" ☃',
    }
    batch = memory.batches[0]
    assert (batch.stream, batch.format, batch.received_at_ns) == ("security_events", "ecs", 1_795_633_200_000_000_000)


@pytest.mark.parametrize("watch", ["auto", "poll"])
async def test_files_and_directories_that_appear_later_are_read_from_the_beginning(tmp_path, memory, watch):
    """Polling finds the same as inotify."""
    globs = [tmp_path / "*.log", tmp_path / "later" / "*" / "app.log", tmp_path / "deep" / "**" / "*.txt"]
    async with running(memory, *globs, watch=watch) as site:
        append(tmp_path / "new.log", "one")
        await site.until_messages("one")
        (tmp_path / "later" / "a").mkdir(parents=True)
        append(tmp_path / "later" / "a" / "app.log", "two")
        await site.until_messages("one", "two")
        (tmp_path / "deep" / "x" / "y").mkdir(parents=True)
        append(tmp_path / "deep" / "x" / "y" / "z.txt", "three")
        await site.until_messages("one", "two", "three")
        append(tmp_path / "new.log", "four")
        await site.until_messages("one", "two", "three", "four")
        assert site.plug._watcher.is_polling is (watch == "poll")


async def test_start_end_passes_over_what_is_there_and_nothing_that_comes(tmp_path, memory):
    """Of a line that is only half written at that moment, the rest is passed over too."""
    ended, half, late = (tmp_path / name for name in ("ended.log", "half.log", "late.log"))
    append(ended, "old")
    half.write_text("old\nhalf of a li")
    async with running(memory, tmp_path / "*.log", start="end") as site:
        append(ended, "new")
        append(half, "ne", "next")
        await site.until_messages("new", "next")
    append(late, "while away")
    async with running(memory, tmp_path / "*.log", start="end") as site:
        await site.until_messages("new", "next", "while away")


async def test_a_stop_before_the_first_event_is_still_a_first_start_that_was(tmp_path, memory):
    """Nothing was read, but files that come from now on are new ones."""
    async with running(memory, tmp_path / "*.log", start="end") as site:
        await site.until(lambda: memory.table)
    append(tmp_path / "a.log", "one")
    async with running(memory, tmp_path / "*.log", start="end") as site:
        await site.until_messages("one")


async def test_a_restart_goes_on_where_the_durable_batch_ended(tmp_path, memory):
    """Also for files that were renamed while nobody looked, to names that no glob has."""
    log = tmp_path / "app.log"
    append(log, "one", "two")
    async with running(memory, log) as site:
        await site.until_messages("one", "two")
    append(log, "three")
    log.rename(tmp_path / "app.log.1")
    append(tmp_path / "app.log.1", "four")
    append(log, "five")
    async with running(memory, log) as site:
        await site.until_messages("one", "two", "three", "four", "five")
        assert memory.troubles == []


async def test_a_batch_that_was_not_accepted_is_read_again(tmp_path, memory):
    """The spool refused: nothing has moved."""
    log = tmp_path / "app.log"
    append(log, "one")
    memory.fail = OSError("spool is closed")
    plug, _ = make(memory, log)
    with pytest.raises(OSError, match="spool is closed"):
        await plug.run(memory.accept)
    async with running(memory, log) as site:
        await site.until_messages("one")


async def test_nothing_is_read_while_the_spool_takes_nothing(tmp_path, memory):
    """Back-pressure: one round waits, the rest stays in the files."""
    log = tmp_path / "app.log"
    append(log, "x" * 100)
    memory.gate.clear()
    async with running(memory, log) as site:
        await asyncio.sleep(0.3)
        append(log, *(str(number) for number in range(1000)))
        assert all(tail.place.position == 0 for tail in site.table.tails.values())
        memory.gate.set()
        await site.until(lambda: len(memory.messages) == 1001)


async def test_a_busy_file_does_not_starve_others(tmp_path, memory):
    """Ten quiet files beside one with megabytes: theirs come among the first batches."""
    busy = tmp_path / "busy.log"
    busy.write_bytes((b"b" * 99 + b"\n") * 50_000)
    for number in range(10):
        append(tmp_path / f"quiet{number}.log", "q")
    async with running(memory, tmp_path / "*.log") as site:
        await site.until(lambda: len(memory.events) == 50_010)
    first = [i for i, event in enumerate(memory.events) if event["message"] == "q"]
    assert max(first) < 15_000
    assert max(batch.count for batch in memory.batches) <= 8192 * 1.5


async def test_open_files_are_bounded_and_no_position_is_lost(tmp_path, memory):
    """Twenty files through three descriptors, again and again."""
    logs = [tmp_path / f"{number}.log" for number in range(20)]
    expected = []
    async with running(memory, tmp_path / "*.log", max_open_files=3) as site:
        for turn in range(5):
            for log in logs:
                append(log, f"{log.name} {turn}")
                expected.append(f"{log.name} {turn}")
            await site.until_messages(*expected)
            assert site.table.open_files <= 3
    assert memory.troubles == []


async def test_known_files_are_bounded_and_that_is_said(tmp_path, memory, caplog):
    """Gone ones make room."""
    for number in range(5):
        append(tmp_path / f"{number}.log", str(number))
    async with running(memory, tmp_path / "*.log", max_files=3, rotate_wait=0.0) as site:
        await site.until(lambda: len(memory.messages) == 3)
        assert caplog.text.count("raise max_files") >= 1
        for path in list(tmp_path.iterdir())[:5]:
            if path.read_text().strip() in memory.messages:
                path.unlink()
        await site.until(lambda: len(memory.messages) == 5)
        assert len(site.table.tails) <= 3


async def test_the_position_of_a_vanished_file_expires(tmp_path, memory):
    """From the checkpoint as well: tables do not grow for ever."""
    log = tmp_path / "app.log"
    append(log, "one")
    async with running(memory, log, rotate_wait=0.0, forget_after=0.2) as site:
        await site.until_messages("one")
        assert len(memory.table) == 2
        log.unlink()
        await site.until(lambda: memory.table.keys() == {b""})
        assert site.table.tails == {}


async def test_what_is_no_regular_file_is_refused_and_said_once(tmp_path, memory, caplog):
    """A FIFO would block, a device has effects."""
    os.mkfifo(tmp_path / "pipe.log")
    append(tmp_path / "real.log", "one")
    (tmp_path / "dir.log").mkdir()
    (tmp_path / "nowhere.log").symlink_to(tmp_path / "missing")
    async with running(memory, tmp_path / "*.log") as site:
        await site.until_messages("one")
        append(tmp_path / "real.log", "two")
        await site.until_messages("one", "two")
        await asyncio.sleep(0.7)  # two more looks
    assert caplog.text.count("no regular file") == 1


async def test_an_unreadable_file_is_said_once_and_tried_again(tmp_path, memory, monkeypatch, caplog):
    """Skipped meanwhile, with the remedy. (Tests may run as root, who may read anything: the refusal is made.)"""
    log = tmp_path / "app.log"
    append(log, "one")
    append(tmp_path / "b.log", "two")

    def refuse(path, key):
        if path == str(log):
            raise PermissionError(13, "Permission denied", path)
        return open_as(path, key)

    monkeypatch.setattr(file_table, "open_as", refuse)
    async with running(memory, tmp_path / "*.log") as site:
        await site.until_messages("two")
        await asyncio.sleep(0.7)  # more than one look
        assert caplog.text.count("cannot be read: Permission denied; give the agent") == 1
        monkeypatch.undo()
        await site.until_messages("one", "two")
    assert caplog.text.count("cannot be read") == 1


def test_trouble_is_told_while_the_reader_finds_that_it_is_over(memory, monkeypatch):
    """It reads in a thread of its own, and a status is gathered on the loop."""
    plug, _ = make(memory, "/logs/*.log")
    for name in ("a", "b", "c"):
        plug._say(f"/logs/{name}.log", "it cannot be read", "give access")

    def meanwhile(path):
        plug._say("/logs/a.log", None)
        plug._say(f"{path}.new", "it cannot be read", "give access")
        return True

    monkeypatch.setattr("os.path.lexists", meanwhile)
    assert plug.trouble() == "/logs/a.log: it cannot be read (and 2 more)"


async def test_a_file_that_the_guard_refuses_is_never_read(tmp_path, memory, caplog):
    """Under whatever name it comes, and however soon it was opened."""
    secret = tmp_path / "secret"
    append(secret, "password")
    inode = secret.stat().st_ino

    def guard(name: str, fd: int) -> str | None:
        assert name == "file"
        return "holds secrets" if os.fstat(fd).st_ino == inode else None

    os.link(secret, tmp_path / "there.log")
    async with running(memory, tmp_path / "*.log", guard=guard) as site:
        os.link(secret, tmp_path / "comes.log")
        append(tmp_path / "a.log", "one")
        await site.until_messages("one")
        append(tmp_path / "a.log", "two")
        await site.until_messages("one", "two")
        assert {tail.place.position for tail in site.table.tails.values()} == {0, 8}
    assert "it cannot be read: holds secrets; policy_allow.paths" in caplog.text


async def test_links_and_hard_links_are_one_file(tmp_path, memory):
    """A link's target lies where no watch is: it is asked for."""
    target = tmp_path / "elsewhere" / "real"
    target.parent.mkdir()
    append(target, "one")
    (tmp_path / "link.log").symlink_to(target)
    append(tmp_path / "a.log", "two")
    os.link(tmp_path / "a.log", tmp_path / "b.log")
    async with running(memory, tmp_path / "*.log") as site:
        await site.until_messages("one", "two")
        append(target, "three")
        append(tmp_path / "b.log", "four")
        await site.until_messages("one", "two", "three", "four")


async def test_a_path_that_is_not_utf8_survives(tmp_path, memory):
    """Percent-escaped in the event, and remembered."""
    path = tmp_path / os.fsdecode(b"caf\xe9 100%.log")
    append(path, "one")
    async with running(memory, tmp_path / "*.log") as site:
        await site.until_messages("one")
    assert memory.events[0]["log"]["file"]["path"] == f"{tmp_path}/caf%E9 100%25.log"
    append(path, "two")
    async with running(memory, tmp_path / "*.log") as site:
        await site.until_messages("one", "two")


async def test_syslog_lines_bring_their_own_time_host_and_process(tmp_path, memory):
    """auth.log as rsyslog writes it, in the zone that the input was told."""
    log = tmp_path / "auth.log"
    append(log, "Nov 25 19:00:00 bastion sshd[812]: Failed password for root", "not syslog at all")
    settings = {"parse": "syslog", "timezone": "Europe/Berlin", "clock": lambda: 1_795_633_200.0}
    async with running(memory, log, **settings) as site:
        await site.until(lambda: len(memory.events) == 2)
    first, second = memory.events
    assert first["@timestamp"] == "2026-11-25T18:00:00Z"
    assert (first["host"]["hostname"], first["process"]) == ("bastion", {"name": "sshd", "pid": 812})
    assert first["message"] == "Failed password for root"
    assert first["event"]["created"] == "2026-11-25T19:00:00.000000Z" == second["@timestamp"]
    assert (second["message"], second["host"]["hostname"]) == ("not syslog at all", "web-1")


async def test_events_get_their_ids_from_the_spool_they_went_through(tmp_path, memory):
    """What the decoder makes of a batch: the same event, named."""
    log = tmp_path / "app.log"
    append(log, "one", "two")
    async with running(memory, log) as site:
        await site.until_messages("one", "two")
    body = b"".join(pack_body(memory.batches[0]))
    decoder = make_decoder(DecodeSettings("c1"))
    decoded = decoder.decode(body, stream="s", spool_id="k3v9", sequence=35, received_at_ns=10**18)
    events = [orjson.loads(line) for line in decoded.lines()]
    assert [event["event"].pop("id") for event in events] == ["k3v9-z", "k3v9-10"]
    assert events == memory.events
    assert decoded.parse_failures == 0


async def test_polling_takes_over_where_no_watch_can_be_had(tmp_path, memory, monkeypatch, caplog):
    """The system's limit is reached: said once, with the remedy, and nothing is missed."""
    from asyncinotify import Inotify

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Inotify, "add_watch", refuse)
    log = tmp_path / "app.log"
    async with running(memory, tmp_path / "*.log") as site:
        append(log, "one")
        await site.until_messages("one")
        append(log, "two")
        await site.until_messages("one", "two")
    assert caplog.text.count("max_user_watches") == 1


@pytest.mark.parametrize(
    "settings",
    [{"encoding": "hex"}, {"encoding": "nonsense"}, {"timezone": "Mars/Base"}, {"multiline": {"pattern": "("}},
     {"max_line_bytes": 10}, {"paths": []}, {"start": "middle"}],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings):
    """At `check`, not at three in the morning."""
    with pytest.raises(ValidationError):
        Config.model_validate({"paths": ["/var/log/x"], **settings})
