"""`ndcollector spool`: as a person types it, on a dead spool and beside a live one."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import UnixStreamServer

import pytest
from spool_layers import ORIGIN, batch

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig
from ndagent.core.spool.segment import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from ndagent.wire.record import Batch, Flags, Framing, Section
from ndcollector.__main__ import main

STREAM = "security_events"


async def open_spool(state_dir):
    config = SpoolConfig(segment_bytes=8192, max_bytes=1 << 20)
    return await Spool.open(state_dir / "spool" / STREAM, stream=STREAM, config=config, metrics=Metrics())


@pytest.fixture
async def state_dir(tmp_path):
    """A closed spool: three records a second apart, and cursor `siem` that has had them all."""
    spool = await open_spool(tmp_path)
    cursor = spool.cursor("siem")
    await spool.append(batch("<13>one", "<13>two", received_at_ns=1_000 * 10**9))
    counted = b"7 <13>two8 <13>thr\n"
    section = Section(ORIGIN, Framing.OCTET_COUNTED, Flags.NONE, len(counted), 2)
    await spool.append(Batch(STREAM, "syslog", 1_001 * 10**9, [section], [counted]))
    await spool.append(batch("<13>four", received_at_ns=1_002 * 10**9))
    cursor.advance(5)
    await cursor.save()
    await spool.aclose()
    return tmp_path


async def run(*arguments) -> int:
    """The command in a thread, so that a spool of this loop stays alive beside it."""
    return await asyncio.to_thread(main, ["spool", *map(str, arguments)])


def damage(state_dir):
    (path,) = (state_dir / "spool" / STREAM).glob("*.seg")
    data = bytearray(path.read_bytes())
    data[SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES] ^= 4
    path.write_bytes(data)
    return path


async def test_ls_shows_segments_and_each_outputs_ledger(state_dir, capsys):
    """What an operator asks first: how much, how old, who is behind."""
    assert await run("ls", "--state-dir", state_dir) == 0
    out = capsys.readouterr().out
    assert "next 5" in out
    assert "0..5  1970-01-01T00:16:40Z .. 1970-01-01T00:16:42Z" in out
    assert "cursor siem  at 5  appended 5  delivered 5  pending 0" in out


async def test_verify_exits_0_on_a_clean_spool_and_1_naming_the_damage(state_dir, capsys):
    """For a person and for a cron job."""
    assert await run("verify", "--state-dir", state_dir) == 0
    assert "clean" in capsys.readouterr().out
    path = damage(state_dir)
    assert await run("verify", "--state-dir", state_dir, "--stream", STREAM) == 1
    assert f"{path}: offset 44: events 0..1: the body does not match its CRC" in capsys.readouterr().out


async def test_verify_of_a_live_spool_finds_no_damage_in_what_is_being_written(tmp_path):
    """It reads while segments come and go."""
    spool = await open_spool(tmp_path)
    cursor = spool.cursor("out")
    done = asyncio.Event()

    async def work():
        while not done.is_set():
            await asyncio.gather(*[spool.append(batch("x" * 3000)) for _ in range(5)])
            cursor.advance(spool.next_sequence)
            await cursor.save()

    task = asyncio.ensure_future(work())
    for _ in range(30):
        assert await run("verify", "--state-dir", tmp_path) == 0
    done.set()
    await task
    await spool.aclose()


async def test_export_writes_messages_of_any_framing_one_a_line(state_dir, tmp_path):
    """Raw is as they came, less the framing."""
    out = tmp_path / "out"
    assert await run("export", "--state-dir", state_dir, "--out", out) == 0
    assert out.read_bytes() == b"<13>one\n<13>two\n<13>two\n<13>thr\n<13>four\n"


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (["--from", "1", "--to", "3"], [1, 2]),
        (["--from", "1970-01-01T00:16:41Z"], [2, 3, 4]),
        (["--to", "1970-01-01T00:16:40.5"], [0, 1]),
    ],
)
async def test_export_takes_a_range_of_sequences_or_times(state_dir, tmp_path, bounds, expected):
    """Inside records too: a range is of events."""
    out = tmp_path / "out"
    assert await run("export", "--state-dir", state_dir, "--format", "ndjson", "--out", out, *bounds) == 0
    events = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [event["event"]["sequence"] for event in events] == expected


async def test_export_names_what_it_cannot_read_and_writes_the_rest(state_dir, tmp_path, capsys):
    """Half a spool is better than none, but never silently."""
    damage(state_dir)
    out = tmp_path / "out"
    assert await run("export", "--state-dir", state_dir, "--out", out) == 1
    assert out.read_bytes() == b"<13>two\n<13>thr\n<13>four\n"
    assert "events 0..1" in capsys.readouterr().err


async def test_replay_on_a_dead_spool_sets_the_cursor_back(state_dir, capsys):
    """And the outputs learn that these are wanted again."""
    arguments = ["replay", "--state-dir", state_dir, "--output", "siem"]
    assert await run(*arguments, "--from", "1970-01-01T00:16:41Z") == 0
    assert "3 events" in capsys.readouterr().out
    spool = await open_spool(state_dir)
    cursor = spool.cursor("siem")
    assert (cursor.sequence, cursor.replay_until) == (2, 5)
    account = cursor.account()
    assert (account.appended, account.delivered, account.pending) == (8, 5, 3)
    await spool.aclose()
    assert await run("replay", "--state-dir", state_dir, "--output", "nobody", "--from", "0") == 1
    assert "no such cursor" in capsys.readouterr().err


async def test_replay_on_a_live_spool_asks_the_daemon(state_dir, tmp_path, capsys):
    """The lock says that it is live; moving a cursor under a daemon would be undone by its next save."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"events": 4}')

        def log_message(self, *arguments):
            pass

    path = tmp_path / "admin.sock"
    spool = await open_spool(state_dir)
    arguments = ["replay", "--state-dir", state_dir, "--output", "siem", "--from", "1", "--to", "3", "--socket", path]
    assert await run(*arguments) == 1
    assert "does not answer" in capsys.readouterr().err
    with UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert await run(*arguments) == 0
        thread.join()
    assert asked == [("/v1/replay", {"output": "siem", "stream": STREAM, "from": 1, "to": 3})]
    assert '{"events": 4}' in capsys.readouterr().out
    assert spool.cursor("siem").sequence == 5
    await spool.aclose()


async def test_a_spool_that_is_not_there_is_said_with_the_remedy(tmp_path):
    """A typo in --stream must not print a clean bill of health."""
    with pytest.raises(SystemExit, match="no such spool; --stream names one"):
        await run("verify", "--state-dir", tmp_path, "--stream", "typo")
