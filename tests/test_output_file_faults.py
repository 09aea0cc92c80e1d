"""The `file` output on a bad day: full, failing and read-only disks, files taken away, kill -9."""

import asyncio
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from itertools import chain
from pathlib import Path

import pytest
from file_output_batches import NOON, batch, sequences

from ndagent.core.interfaces import Unavailable
from ndcollector.outputs import file_recovery, file_writer
from ndcollector.outputs.file import Config, FileOutput
from ndcollector.outputs.file_log import Disk
from ndcollector.outputs.file_rotation import Compression, tidy


class FaultyDisk(Disk):
    """A disk with `room` bytes left (None: enough), whose next `failing_syncs` syncs fail."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.failing_syncs = 0
        self.before_write: Callable[[], None] = lambda: None

    def write(self, fd: int, data: memoryview) -> int:
        """Short writes before ENOSPC, as a file system does it."""
        self.before_write()
        if self.room is None:
            return super().write(fd, data)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = super().write(fd, data[: self.room])
        self.room -= done
        return done

    def fdatasync(self, fd: int) -> None:
        """EIO while it is asked to fail."""
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fdatasync(fd)


@pytest.fixture
def disk() -> FaultyDisk:
    """Healthy until told otherwise."""
    return FaultyDisk()


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """The file that the output writes."""
    return tmp_path / "logs" / "security_events.ndjson"


@pytest.fixture
async def output(live: Path, disk: FaultyDisk) -> AsyncIterator[FileOutput]:
    """An output that writes `live`."""
    config = Config(path=live.with_name("{stream}.ndjson"))
    made = FileOutput("archive", config, clock=NOON.timestamp, disk=disk)
    yield made
    await made.aclose()


async def test_a_full_disk_is_unavailable_and_leaves_whole_lines(
    output: FileOutput, disk: FaultyDisk, live: Path
) -> None:
    """What fitted stays and is not written again; the half line goes at once; writing goes on by itself."""
    await output.send(batch(0, 10, line_bytes=300))
    disk.room = 1000
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"security_events\.ndjson: No space left on device; free some space"):
            await output.send(batch(10, 10, line_bytes=300))
        assert sequences(live) == list(range(13))
    disk.room = None
    await output.send(batch(10, 10, line_bytes=300))
    assert sequences(live) == list(range(20))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_really_full_file_system_is_survived(tmp_path: Path) -> None:
    """The same with a kernel's own ENOSPC: a tmpfs of 256 KiB, in a mount namespace that ends with its process."""
    program = f"""
import asyncio, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from pathlib import Path
from file_output_batches import *
from ndagent.core.interfaces import Unavailable
from ndcollector.outputs import file_recovery, file_writer
from ndcollector.outputs.file import Config, FileOutput
async def main():
    root = Path({str(tmp_path)!r})
    ballast = root / "ballast"
    ballast.write_bytes(bytes(128 * 1024))
    output = FileOutput("archive", Config(path=root / "{{stream}}.ndjson"), clock=NOON.timestamp)
    try:
        await output.send(batch(0, 1000))
    except Unavailable as error:
        print(error)
    partial = len(sequences(root / "security_events.ndjson"))
    ballast.unlink()
    await output.send(batch(0, 1000))
    await output.sync()
    await output.aclose()
    print(0 < partial < 1000, sequences(root / "security_events.ndjson") == list(range(1000)))
asyncio.run(main())
"""
    command = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=256k none {tmp_path} && exec "$0" -c "$1"']
    done = subprocess.run([*command, sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"this sandbox forbids mounting: {done.stderr.strip()}")
    assert done.stdout.splitlines() == [
        f"{tmp_path}/security_events.ndjson: No space left on device; free some space; writing goes on by itself",
        "True True",
    ], done.stderr


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_what_a_full_disk_left_of_a_compression_is_not_left_to_fill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: Compression
) -> None:
    """Nothing could be written any more, so no next rotation would ever come to remove it."""
    live, plain = tmp_path / "events.ndjson", tmp_path / "events-20260728T120000.000000Z.ndjson"
    live.write_bytes(batch(9, 1).ndjson)
    plain.write_bytes(batch(0, 9).ndjson)

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        tidy(str(live), compress=how, keep=0, stop=threading.Event())
    assert sorted(tmp_path.iterdir()) == [plain, live]
    assert "rotated files stay as they are" in caplog.text
    tidy(str(live), compress=how, keep=0, stop=threading.Event())
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [{"gzip": ".gz", "zstd": ".zst"}[how], ".ndjson"]


async def test_after_a_failed_fdatasync_the_tail_is_written_to_a_new_file(
    output: FileOutput, disk: FaultyDisk, live: Path
) -> None:
    """The kernel may call pages clean that never reached the disk; a second fdatasync of them proves nothing."""
    await output.send(batch(0, 10))
    await output.sync()
    await output.send(batch(10, 10))
    disk.failing_syncs = 1
    with pytest.raises(Unavailable, match="check the disk"):
        await output.sync()
    await output.send(batch(20, 5))
    await output.sync()
    sealed, fresh = sorted(live.parent.iterdir())
    assert (sequences(sealed), sequences(fresh)) == (list(range(10)), list(range(10, 25)))
    assert fresh == live


async def test_a_file_that_keeps_failing_to_sync_loses_nothing(
    output: FileOutput, disk: FaultyDisk, live: Path
) -> None:
    """A dying disk may fail again and again; each event stays in exactly one file."""
    for round_ in range(4):
        await output.send(batch(round_ * 10, 10))
        disk.failing_syncs = 1
        with pytest.raises(Unavailable):
            await output.sync()
    await output.sync()
    assert sequences(*sorted(live.parent.iterdir())) == list(range(40))


async def test_what_a_kill_left_unsynced_is_not_trusted_after_its_sync_failed(
    live: Path, disk: FaultyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """A second try would succeed over pages that the kernel gave up, and events that come again would be skipped."""

    def start() -> FileOutput:
        return FileOutput("archive", Config(path=live.with_name("{stream}.ndjson")), clock=NOON.timestamp, disk=disk)

    killed = start()
    await killed.send(batch(0, 10))
    await killed.aclose()  # without a sync, as a kill would
    output = start()
    disk.failing_syncs = 1
    await output.send(batch(0, 5))
    await output.send(batch(5, 10))
    await output.sync()
    await output.aclose()
    (aside,) = live.parent.glob("security_events-*.unsynced.ndjson")
    assert sequences(aside) == list(range(10))
    assert sequences(live) == list(range(15))
    assert f"{aside}" in [record.path for record in caplog.records if record.levelname == "ERROR"]


async def test_a_file_in_doubt_that_cannot_be_put_aside_is_not_trusted_either(
    live: Path, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output waits until it can; meanwhile nothing is appended to it."""
    config = Config(path=live.with_name("{stream}.ndjson"))
    killed = FileOutput("archive", config, clock=NOON.timestamp, disk=disk)
    await killed.send(batch(0, 10))
    await killed.aclose()
    output = FileOutput("archive", config, clock=NOON.timestamp, disk=disk)
    disk.failing_syncs = 1

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await output.send(batch(0, 5))
    assert sequences(live) == list(range(10))
    await output.send(batch(0, 5))
    await output.aclose()
    assert sequences(live) == list(range(5))


@pytest.mark.parametrize("is_killed", [False, True], ids=["in one process", "over a kill"])
async def test_what_was_put_aside_is_not_trusted_by_who_finds_no_file_in_its_place(
    live: Path, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """The file was moved away, its successor could not be made: as after a rotation that a crash interrupted."""
    config = Config(path=live.with_name("{stream}.ndjson"))
    killed = FileOutput("archive", config, clock=NOON.timestamp, disk=disk)
    await killed.send(batch(0, 10))
    await killed.aclose()
    output = FileOutput("archive", config, clock=NOON.timestamp, disk=disk)
    disk.failing_syncs = 1

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(file_writer.FileWriter, "_create", refuse)
        with pytest.raises(Unavailable):
            await output.send(batch(0, 10))
    if is_killed:
        await output.aclose()
        output = FileOutput("archive", config, clock=NOON.timestamp, disk=disk)
    await output.send(batch(0, 10))
    await output.sync()
    await output.aclose()
    assert sequences(live) == list(range(10))


class KernelOfMany(Disk):
    """syncfs(2) as Linux has it: a descriptor hears once of a write that failed since it was opened."""

    def __init__(self) -> None:
        self.failures = 0
        self._heard: dict[int, int] = {}

    def write(self, fd: int, data: memoryview) -> int:
        """The first write comes right behind the opening."""
        self._heard.setdefault(os.fstat(fd).st_ino, self.failures)
        return super().write(fd, data)

    def syncfs(self, fd: int) -> None:
        """EIO to whom it concerns."""
        inode = os.fstat(fd).st_ino
        if self._heard[inode] < self.failures:
            self._heard[inode] = self.failures
            raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_a_write_that_failed_behind_our_back_is_heard_of_whatever_file_is_asked_first(live: Path) -> None:
    """Many files are synced by one call; asked of a file opened after the failure, it would say that all is well."""
    kernel, old = KernelOfMany(), [f"old{n}" for n in range(20)]
    output = FileOutput("archive", Config(path=live.with_name("{host}.ndjson")), clock=NOON.timestamp, disk=kernel)
    await output.send(batch(0, 20, hosts=old))
    kernel.failures += 1
    await output.send(batch(20, 1, hosts=["new"]))
    await output.send(batch(21, 20, hosts=old))  # now the new one has been idle for longest
    with pytest.raises(Unavailable):
        await output.sync()
    await output.sync()
    await output.aclose()
    assert sorted(sequences(*live.parent.iterdir())) == list(range(41))
    assert sequences(live.with_name("old3.ndjson")) == [3, 24], "what was in doubt is in a new file"


class RotationHearsFirst(FaultyDisk):
    """The sync of a cursor is under way while a rotation syncs the same file, and hears of what was lost."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way, self.go_on = threading.Event(), threading.Event()

    def fdatasync(self, fd: int) -> None:
        """The first waits and then succeeds, for the second was told."""
        if not self.under_way.is_set():
            self.under_way.set()
            self.go_on.wait(10)
            return
        super().fdatasync(fd)


async def test_a_sync_fails_though_a_rotation_was_told_of_the_failure(live: Path) -> None:
    """The kernel tells once per open file; whoever hears nothing must not save a cursor over the lost pages."""
    disk = RotationHearsFirst()
    config = Config(path=live.with_name("{stream}.ndjson"), rotate={"max_bytes": 1000})
    output = FileOutput("archive", config, clock=NOON.timestamp, disk=disk)
    await output.send(batch(0, 3))
    syncing = asyncio.ensure_future(output.sync())
    await asyncio.to_thread(disk.under_way.wait, 10)
    disk.failing_syncs = 1
    with pytest.raises(Unavailable):
        await output.send(batch(3, 10))
    disk.go_on.set()
    with pytest.raises(Unavailable):
        await syncing
    await output.send(batch(0, 13))
    await output.sync()
    await output.aclose()
    assert sorted(set(sequences(*live.parent.iterdir()))) == list(range(13))


async def test_a_deleted_file_is_made_again(output: FileOutput, live: Path) -> None:
    """Somebody frees space with rm: what comes next must not go to a file nobody can see."""
    await output.send(batch(0, 5))
    live.unlink()
    await output.send(batch(5, 5))
    assert sequences(live) == list(range(5, 10))
    await output.sync()


async def test_a_file_deleted_in_the_middle_of_a_write_is_written_again(
    output: FileOutput, disk: FaultyDisk, live: Path
) -> None:
    """The check before the write cannot see it; the one after it does."""
    await output.send(batch(0, 5))
    disk.before_write = lambda: (live.unlink(), setattr(disk, "before_write", lambda: None))  # type: ignore[assignment,func-returns-value]  # once
    await output.send(batch(5, 5))
    assert sequences(live) == list(range(5, 10))


@pytest.mark.parametrize("lines_that_fit", [8, 5, 3])
async def test_a_file_deleted_in_the_middle_of_a_write_on_a_full_disk_takes_no_event_along(
    output: FileOutput, disk: FaultyDisk, live: Path, lines_that_fit: int
) -> None:
    """What stood only in the deleted file was not written: it must not be skipped when the disk has room again."""
    await output.send(batch(0, 5, line_bytes=300))
    disk.before_write = lambda: (live.unlink(), setattr(disk, "before_write", lambda: None))  # type: ignore[assignment,func-returns-value]  # once
    disk.room = lines_that_fit * 300
    with pytest.raises(Unavailable):
        await output.send(batch(5, 5, line_bytes=300))
    disk.room = None
    await output.send(batch(5, 5, line_bytes=300))
    assert sequences(live) == list(range(5, 10))


async def test_a_removed_directory_is_made_again(output: FileOutput, live: Path) -> None:
    """As after a clean-up with a broad brush."""
    await output.send(batch(0, 5))
    shutil.rmtree(live.parent)
    await output.send(batch(5, 5))
    assert sequences(live) == list(range(5, 10))
    await output.sync()


async def test_logrotate_may_move_or_truncate_the_file(output: FileOutput, live: Path) -> None:
    """Both of its ways: rename, and copytruncate; neither needs a signal."""
    await output.send(batch(0, 5))
    live.rename(live.with_suffix(".1"))
    await output.send(batch(3, 5))
    assert sequences(live.with_suffix(".1"), live) == list(range(8))
    os.truncate(live, 0)
    await output.send(batch(8, 2))
    await output.sync()
    assert sequences(live) == [8, 9]


@pytest.mark.parametrize("cut", [1, 50, 150])
async def test_a_half_line_is_trimmed_and_its_event_written_whole(output: FileOutput, live: Path, cut: int) -> None:
    """A crash in the middle of write(2)."""
    live.parent.mkdir()
    live.write_bytes(batch(0, 10).ndjson[:-cut])
    await output.send(batch(5, 10))
    assert sequences(live) == list(range(15))


@pytest.mark.parametrize("torn", [batch(20, 1, line_bytes=10_000).ndjson[:-1], bytes(10_000)], ids=["line", "zeros"])
async def test_a_half_line_longer_than_one_look_back_is_trimmed_too(
    output: FileOutput, live: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    """With max_message_bytes raised a line has tens of MiB; it must not need a person to move the file away."""
    monkeypatch.setattr(file_recovery, "_STEP_BYTES", 4096)
    live.parent.mkdir()
    live.write_bytes(batch(0, 20).ndjson + torn)
    await output.send(batch(10, 20))
    assert sequences(live) == list(range(30))


async def test_lines_longer_than_one_look_back_are_found_again(
    output: FileOutput, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be written twice after every crash."""
    monkeypatch.setattr(file_recovery, "_STEP_BYTES", 4096)
    live.parent.mkdir()
    live.write_bytes(batch(0, 20, line_bytes=10_000).ndjson)
    await output.send(batch(10, 20, line_bytes=10_000))
    assert sequences(live) == list(range(30))


async def test_zeros_after_a_power_cut_do_not_hide_lost_events(output: FileOutput, live: Path) -> None:
    """XFS and ext4 may show zeros for blocks that never arrived, at the end or before lines that did."""
    live.parent.mkdir()
    whole = batch(0, 30)
    lines = whole.lines()
    lines[20] = bytes(len(lines[20]) - 1) + b"\n"
    live.write_bytes(b"".join(lines) + bytes(4096))
    await output.send(batch(10, 30))
    text = live.read_bytes()
    assert all(line in text for line in batch(0, 40).lines())
    assert text.count(whole.lines()[19]) == 1


async def test_a_foreign_file_is_never_cut(output: FileOutput, live: Path) -> None:
    """A path that points at somebody's notes is a mistake in the configuration, not a reason to destroy them."""
    live.parent.mkdir()
    live.write_bytes(b"first line\nimportant, no line feed")
    with pytest.raises(Unavailable, match="move the file away"):
        await output.send(batch(0, 1))
    assert live.read_bytes() == b"first line\nimportant, no line feed"


async def test_two_outputs_cannot_write_one_file(output: FileOutput, live: Path) -> None:
    """Each would take the other's events for its own."""
    await output.send(batch(0, 1))
    other = FileOutput("other", Config(path=live), clock=NOON.timestamp)
    with pytest.raises(Unavailable, match="a path of its own"):
        await other.send(batch(0, 1))
    await other.aclose()


async def test_what_is_not_a_file_is_refused(output: FileOutput, live: Path) -> None:
    """A FIFO would block the thread for ever, a directory can hold no line."""
    live.parent.mkdir()
    os.mkfifo(live)
    with pytest.raises(Unavailable, match="not a regular file"):
        await output.send(batch(0, 1))
    live.unlink()
    live.mkdir()
    with pytest.raises(Unavailable, match="Is a directory"):
        await output.send(batch(0, 1))


async def test_a_crash_between_rotation_and_first_line_doubles_nothing(tmp_path: Path) -> None:
    """The live file is new and empty then; the last event is in the file rotated last."""
    (tmp_path / "security_events-20260728T110000.000000Z.ndjson").write_bytes(batch(0, 10).ndjson)
    output = FileOutput("a", Config(path=tmp_path / "{stream}.ndjson"), clock=NOON.timestamp)
    await output.send(batch(5, 10))
    await output.aclose()
    assert sequences(*sorted(tmp_path.iterdir())) == list(range(15))


WRITER = """
import asyncio, random, sys
from pathlib import Path
from file_output_batches import *
from ndcollector.outputs.file import Config, FileOutput
root, template, seed, total = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
async def main():
    dice = random.Random(seed)
    config = Config(path=root / "out" / template, rotate={"max_bytes": 30000, "keep": 0})
    output = FileOutput("a", config, clock=NOON.timestamp)
    cursor = root / "cursor"
    at = int(cursor.read_text()) if cursor.exists() else 0
    print("up", flush=True)
    while at < total:
        sends = []
        for _ in range(4):
            count = min(dice.randint(1, 200), total - at)
            hosts = [f"h{(at + n) % 3}" for n in range(3)]
            sends.append(output.send(batch(at, count, hosts=hosts))) if count else None
            at += count
        await asyncio.gather(*sends)
        if dice.random() < 0.3:
            await output.sync()
            (root / "cursor.new").write_text(str(at))
            (root / "cursor.new").rename(cursor)
    await output.aclose()
asyncio.run(main())
"""


@pytest.mark.parametrize("template", ["{stream}.ndjson", "{host}/{stream}.ndjson"])
def test_after_any_number_of_kills_every_event_is_there_exactly_once(tmp_path: Path, template: str) -> None:
    """kill -9 at random moments, each time restarted from a cursor that lags; rotating all the while."""
    dice = random.Random(template)
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])}
    total, kills = 60_000, 8
    for attempt in range(100):
        arguments = [sys.executable, "-c", WRITER, str(tmp_path), template, str(attempt), str(total)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=os.environ | path) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == b"up\n"
            if attempt < kills:
                time.sleep(dice.uniform(0, 0.15))  # the moment of the kill is what is random here
                writer.send_signal(signal.SIGKILL)
        if writer.returncode == 0:
            break
    found: dict[Path, list[int]] = {}
    for file in sorted((tmp_path / "out").rglob("*.ndjson")):
        found.setdefault(file.parent, []).extend(sequences(file))
    assert all(each == sorted(each) for each in found.values())
    assert sorted(chain.from_iterable(found.values())) == list(range(total))



async def test_sends_go_on_while_a_sync_is_stuck(output: FileOutput, disk: FaultyDisk, live: Path) -> None:
    """fdatasync of a second's worth of data takes a second on a busy disk; readers must not wait for it."""
    stuck, release = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    whole = disk.fdatasync

    def slow(fd: int) -> None:
        loop.call_soon_threadsafe(stuck.set)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        whole(fd)

    await output.send(batch(0, 5))
    disk.fdatasync = slow  # type: ignore[method-assign]  # a disk that hangs
    sync = asyncio.ensure_future(output.sync())
    await stuck.wait()
    await output.send(batch(5, 5))
    assert sequences(live) == list(range(10))
    release.set()
    await sync
