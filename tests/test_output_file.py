"""The `file` output on a healthy disk: what is written, where, in which order, and how it rotates."""

import asyncio
import gzip
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from file_output_batches import NOON, SPOOL_ID, batch, sequences
from pydantic import ValidationError
from services import fetch
from services.need import need

from ndagent.core.interfaces import Unavailable
from ndcollector.outputs import file_recovery, file_writer
from ndcollector.outputs.file import Config, FileOutput

MakeOutput = Callable[..., FileOutput]


class Clock:
    """Unix time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = NOON.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The outputs' clock."""
    return Clock()


@pytest.fixture
async def make(tmp_path: Path, clock: Clock) -> AsyncIterator[MakeOutput]:
    """Builds outputs below tmp_path and closes them; settings as a user writes them."""
    made: list[FileOutput] = []

    def build(path: str = "{stream}.ndjson", **settings: object) -> FileOutput:
        made.append(FileOutput("archive", Config(path=tmp_path / path, **settings), clock=clock))  # type: ignore[arg-type]  # as from YAML
        return made[-1]

    yield build
    for output in made:
        await output.aclose()


async def settled(output: FileOutput) -> None:
    """Wait until housekeeping has nothing left to do."""
    await asyncio.wrap_future(output._tidying.submit(lambda: None))


async def test_an_event_can_be_read_as_soon_as_send_returned(make: MakeOutput, tmp_path: Path) -> None:
    """Within a second is promised; nothing is buffered in the process, so it is at once."""
    events = batch(1, 3)
    await make("a/b/{stream}.ndjson").send(events)
    assert (tmp_path / "a/b/security_events.ndjson").read_bytes() == events.ndjson


async def test_modes_come_from_the_configuration_and_not_from_the_umask(make: MakeOutput, tmp_path: Path) -> None:
    """Logs are confidential by default; who needs more opens them on purpose."""
    old = os.umask(0)
    try:
        await make("d/one").send(batch(1, 1))
        await make("e/two", file_mode="0604", dir_mode="0705").send(batch(1, 1))
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("d", "d/one", "e", "e/two")]
    assert modes == [0o750, 0o640, 0o705, 0o604]


async def test_concurrent_sends_are_written_in_the_order_of_the_calls(make: MakeOutput, tmp_path: Path) -> None:
    """The dispatcher keeps four under way; a file out of order would be of no use to a reader."""
    output = make()
    await asyncio.gather(*(output.send(batch(n * 10, 10)) for n in range(50)))
    assert sequences(tmp_path / "security_events.ndjson") == list(range(500))


async def test_a_send_again_after_a_timeout_is_not_written_twice(make: MakeOutput, tmp_path: Path) -> None:
    """A cancelled send goes on in its thread; the dispatcher then sends the same events again."""
    output = make()
    task = asyncio.ensure_future(output.send(batch(0, 1000)))
    await asyncio.sleep(0)
    task.cancel()
    await output.send(batch(0, 1000))
    await output.send(batch(990, 20))
    assert sequences(tmp_path / "security_events.ndjson") == list(range(1010))


async def test_a_new_output_goes_on_where_the_file_ends(make: MakeOutput, tmp_path: Path) -> None:
    """After a crash the cursor is up to a second old: what the file already has is skipped, once."""
    first = make()
    await first.send(batch(0, 100))
    await first.aclose()
    second = make()
    await second.send(batch(40, 30))
    await second.send(batch(70, 40))
    assert sequences(tmp_path / "security_events.ndjson") == list(range(110))


async def test_a_replay_is_written_though_the_file_has_the_events(make: MakeOutput, tmp_path: Path) -> None:
    """An operator asked for them again; and what comes after the replay is neither lost nor doubled."""
    output = make()
    await output.send(batch(0, 10))
    await output.send(batch(2, 3, replay=True))
    await output.send(batch(8, 4))
    assert sequences(tmp_path / "security_events.ndjson") == [*range(10), 2, 3, 4, 10, 11]


async def test_a_new_spool_begins_at_its_own_beginning(make: MakeOutput, tmp_path: Path) -> None:
    """A wiped state directory means a new spool id; its low sequences are new events."""
    first = make()
    await first.send(batch(0, 10))
    await first.aclose()
    await make().send(batch(0, 5, spool_id="fedcba9876543210"))
    assert sequences(tmp_path / "security_events.ndjson") == [*range(10), *range(5)]


async def test_two_streams_share_a_file_and_each_goes_on_where_it_was(make: MakeOutput, tmp_path: Path) -> None:
    """The last line may be another stream's: each spool's own last event counts."""
    first = make("all.ndjson")
    await first.send(batch(0, 10))
    await first.send(batch(0, 50, stream="alerts", spool_id="aaaa"))
    await first.aclose()
    second = make("all.ndjson")
    await second.send(batch(5, 10))
    await second.send(batch(45, 10, stream="alerts", spool_id="aaaa"))
    assert sequences(tmp_path / "all.ndjson") == [*range(10), *range(50), *range(10, 15), *range(50, 55)]


async def test_a_message_cannot_forge_what_the_file_has(make: MakeOutput, tmp_path: Path) -> None:
    """A sender that knows the spool id must not be able to make later events vanish."""
    first = make()
    await first.send(batch(0, 3, message=f'","event":{{"id":"{SPOOL_ID}-zzzzzz"}}', hosts=[f"{SPOOL_ID}-zzzzzz"]))
    await first.aclose()
    await make().send(batch(0, 6))
    assert sequences(tmp_path / "security_events.ndjson") == list(range(6))


async def test_a_file_ends_exactly_at_its_limit(make: MakeOutput, tmp_path: Path, clock: Clock) -> None:
    """1000 bytes are ten lines of 100; the eleventh begins a new file, and no line is split."""
    output = make(rotate={"max_bytes": 1000})
    await output.send(batch(0, 10, line_bytes=300, hosts=["f"]))  # 3 fit, 900 bytes
    files = sorted(tmp_path.iterdir())
    assert [sequences(file) for file in files] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert files[-1].name == "security_events.ndjson"
    await output.send(batch(10, 1, line_bytes=700))  # exactly 1000 now
    assert len(list(tmp_path.iterdir())) == 4
    await output.send(batch(11, 1, line_bytes=300))
    assert sorted(file.stat().st_size for file in tmp_path.iterdir()) == [300, 900, 900, 900, 1000]


async def test_an_event_longer_than_the_limit_gets_its_own_file(make: MakeOutput, tmp_path: Path) -> None:
    """A limit is no reason to lose an event, nor to loop."""
    output = make(rotate={"max_bytes": 100})
    await output.send(batch(0, 3, line_bytes=500))
    assert [sequences(file) for file in sorted(tmp_path.iterdir())] == [[0], [1], [2]]


async def test_rotation_by_time_turns_with_the_clock(make: MakeOutput, tmp_path: Path, clock: Clock) -> None:
    """Periods are those of Unix time, whatever the hour the daemon was started; an idle period makes no file."""
    output = make(rotate={"every": "1h"})
    for hours in (0, 0.9, 1, 5.5):
        clock.now = NOON.timestamp() + hours * 3600
        await output.send(batch(int(hours * 10), 1))
    assert [sequences(file) for file in sorted(tmp_path.iterdir())] == [[0, 9], [10], [55]]
    assert min(tmp_path.iterdir()).name == "security_events-20260728T130000.000000Z.ndjson"


async def test_rotated_names_never_collide_and_sort_though_the_clock_is_set_back(
    make: MakeOutput, tmp_path: Path, clock: Clock
) -> None:
    """A listing shows the events in their order, the live file last."""
    output = make(rotate={"max_bytes": 100, "keep": 0})
    for sequence in range(20):
        clock.now -= sequence % 3
        await output.send(batch(sequence, 1))
    assert sequences(*sorted(tmp_path.iterdir())) == list(range(20))


@pytest.mark.parametrize(("how", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
async def test_compressed_files_are_read_by_the_usual_tools(
    make: MakeOutput, tmp_path: Path, how: str, suffix: str
) -> None:
    """gzip(1) and zstd(1) are what people have."""
    need(fetch.TOOLS)
    output = make(rotate={"max_bytes": 40_000, "compress": how})
    await output.send(batch(0, 1000))
    await settled(output)
    packed = sorted(tmp_path.glob(f"*{suffix}"))
    assert len(packed) > 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in packed] + ["security_events.ndjson"]
    command = ["gzip", "-dc"] if how == "gzip" else ["zstd", "-dc"]
    text = subprocess.run([*command, *packed], check=True, capture_output=True, env=fetch.together(fetch.TOOLS)).stdout
    (tmp_path / "unpacked").write_bytes(text)
    assert sequences(tmp_path / "unpacked", tmp_path / "security_events.ndjson") == list(range(1000))


async def test_a_crash_while_compressing_costs_nothing(make: MakeOutput, tmp_path: Path) -> None:
    """A partial file is thrown away and the plain one is compressed at the next start; both at once are no harm."""
    (tmp_path / "security_events.ndjson").write_bytes(batch(9, 1).ndjson)
    for hour in "12":
        plain = tmp_path / f"security_events-20260728T{hour}00000.000000Z.ndjson"
        plain.write_bytes(batch(int(hour), 1).ndjson)
    plain.with_name(plain.name + ".gz.partial").write_bytes(b"half")
    plain.with_name(plain.name + ".gz").write_bytes(b"stale")
    output = make(rotate={"max_bytes": 10_000, "compress": "gzip"})
    await output.send(batch(10, 1))
    await settled(output)
    names = ["security_events-20260728T100000.000000Z.ndjson.gz", "security_events-20260728T200000.000000Z.ndjson.gz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "security_events.ndjson"]
    assert [gzip.decompress((tmp_path / name).read_bytes()) for name in names] == [batch(n, 1).ndjson for n in (1, 2)]


async def test_keep_deletes_the_oldest_of_its_own_files_only(make: MakeOutput, tmp_path: Path) -> None:
    """Neighbours whose names merely look alike are somebody else's."""
    others = {"security_events-old.ndjson", "security_events_2-20200101T000000.000000Z.ndjson", "security_events-1.gz"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine\n")
    output = make(rotate={"max_bytes": 100, "keep": 2})
    await output.send(batch(0, 6))
    await settled(output)
    left = sorted(p for p in tmp_path.iterdir() if p.name not in others)
    assert sequences(*left) == [3, 4, 5]
    assert others < {p.name for p in tmp_path.iterdir()}


async def test_dates_in_the_path_are_those_of_receiving(make: MakeOutput, tmp_path: Path) -> None:
    """A batch that spans midnight is split there, and sent again from its middle it meets the same files."""
    output = make("{year}/{month}-{day}/{stream}-{hour}.ndjson")
    midnight = NOON + timedelta(hours=12)
    start = midnight - timedelta(seconds=5)
    await output.send(batch(0, 10, received=start, apart=timedelta(seconds=1)))
    await output.send(batch(3, 10, received=start + timedelta(seconds=3), apart=timedelta(seconds=1)))
    assert sequences(tmp_path / "2026/07-28/security_events-23.ndjson") == list(range(5))
    assert sequences(tmp_path / "2026/07-29/security_events-00.ndjson") == list(range(5, 13))


async def test_each_host_has_its_file_in_order(make: MakeOutput, tmp_path: Path) -> None:
    """The one path that costs Python per event; absent hosts go to `unknown`."""
    output = make("{host}.ndjson")
    await output.send(batch(0, 9, hosts=["fw-1", "2001:db8::1", ""]))
    await output.send(batch(6, 6, hosts=["fw-1", "2001:db8::1", ""]))
    files = {p.stem: sequences(p) for p in tmp_path.iterdir()}
    assert files == {"fw-1": [0, 3, 6, 9], "2001:db8::1": [1, 4, 7, 10], "unknown": [2, 5, 8, 11]}


HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..", ".", ".hidden", "a/../../b", "nul\0byte", "\\..\\x", "h" * 5000,
    "ü\n\x1b[31m", "{stream}", "%s", " ", "-rf", "fw-20260728T120000.000000Z",
]


async def test_a_hostile_host_stays_in_the_directory(make: MakeOutput, tmp_path: Path) -> None:
    """The host is the sender's word: it must not reach another directory, a hidden file, or a rotated file's name."""
    await make("in/{host}.ndjson").send(batch(0, len(HOSTILE), hosts=HOSTILE))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    names = [p.name for p in (tmp_path / "in").iterdir()]
    assert sorted(sequences(*(tmp_path / "in").iterdir())) == list(range(len(HOSTILE)))
    assert not [n for n in names if n.startswith(".") or ".." in n or "-20260728T" in n or len(n) > 200]
    assert set("".join(names)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")


async def test_ten_thousand_hosts_keep_to_the_limit_of_open_files(make: MakeOutput, tmp_path: Path) -> None:
    """Somebody who invents hosts must not use up the daemon's descriptors."""
    output = make("{host}.ndjson", max_open_files=20)
    before = len(list(Path("/proc/self/fd").iterdir()))
    await output.send(batch(0, 10_000, hosts=[f"h{n}" for n in range(10_000)]))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 41
    await output.sync()
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 20
    assert len(list(tmp_path.iterdir())) == 10_000
    await output.send(batch(9_000, 2_000, hosts=[f"h{n}" for n in range(9_000, 10_000)]))
    assert sequences(tmp_path / "h9999.ndjson") == [9_999, 10_999]


@pytest.mark.parametrize("remembered", [10_000, 0])
async def test_hosts_that_take_turns_are_not_read_again_from_their_beginning(
    make: MakeOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    """More hosts than open files: a file that comes back costs its end at most, else each batch reads all of them."""
    monkeypatch.setattr(file_writer, "_KNOWN_FILES", remembered)
    monkeypatch.setattr(file_recovery, "_STEP_BYTES", 4096)
    read, pread = [], os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        read.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    output, hosts = make("{host}.ndjson", max_open_files=4), [f"h{n}" for n in range(12)]
    for turn in range(20):
        if turn == 19:
            read.clear()
        await output.send(batch(turn * 120, 120, hosts=hosts, line_bytes=1000))
        await output.sync()
    assert sum(read) <= 12 * 2 * 4096, "each file holds 190 000 bytes by now"
    for number, host in enumerate(hosts):
        assert sequences(tmp_path / f"{host}.ndjson") == list(range(number, 2400, 12))


async def test_a_closed_output_is_unavailable_and_closing_twice_is_fine(make: MakeOutput) -> None:
    """The contract of Output.aclose."""
    output = make()
    await output.aclose()
    await output.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await output.send(batch(0, 1))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"path": "/x/{tenant}.ndjson"}, "unknown placeholder {tenant}; a path may hold {stream}"),
        ({"path": "/x/{stream.name}"}, "unknown placeholder"),
        ({"path": "/x/{host!r}"}, "unknown placeholder"),
        ({"path": "/x/{}"}, "unknown placeholder {}"),
        ({"path": "/x/{stream"}, "a path may hold"),
        ({"path": "/x/.."}, "names no file"),
        ({"path": "/x", "file_mode": "0999"}, "write permission bits in quotes"),
        ({"path": "/x", "file_mode": 416}, "valid string"),
        ({"path": "/x", "rotate": {"compress": "lz4"}}, "'gzip' or 'zstd'"),
        ({"path": "/x", "rotate": {"max_bytes": 0}}, "greater than 0"),
    ],
)
def test_a_wrong_setting_is_refused_before_it_runs(settings: dict[str, object], complaint: str) -> None:
    """A typing error in a path must not be found at three in the morning."""
    with pytest.raises(ValidationError) as refused:
        Config(**settings)  # type: ignore[arg-type]  # as from YAML
    assert complaint in str(refused.value)
