"""The dead-letter file: durable before it returns, bounded, and whole after any accident."""

import asyncio
import os
from pathlib import Path

import orjson
import pytest

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.interfaces import Unavailable
from tests.events import event_batch


def dead_letters(directory: Path, *, max_bytes: int = 2**20) -> DeadLetters:
    return DeadLetters(directory, output="siem", max_bytes=max_bytes, clock=lambda: 1_700_000_000.0)


def letters_in(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def test_a_letter_keeps_event_reason_time_and_place(tmp_path: Path) -> None:
    """Everything needed to judge it and to send it again."""
    store = dead_letters(tmp_path / "dead_letters")
    await store.append(event_batch(range(7, 9)), reason="mapper_parsing_exception")
    first, second = letters_in(store.path)
    assert first == {
        "time": "2023-11-14T22:13:20.000+00:00",
        "output": "siem",
        "stream": "security_events",
        "spool_id": "s",
        "sequence": 7,
        "reason": "mapper_parsing_exception",
        "event": {"event": {"id": "s-7", "sequence": 7}},
    }
    assert second["sequence"] == 8


async def test_a_body_that_cannot_be_decoded_is_kept_bit_by_bit(tmp_path: Path) -> None:
    """Raw first: a person may still read what we could not."""
    store = dead_letters(tmp_path)
    await store.append_body(b"\x00\xff", stream="alerts", spool_id="s", sequence=3, count=5, reason="r")
    (letter,) = letters_in(store.path)
    assert (letter["body_base64"], letter["count"], letter["sequence"]) == ("AP8=", 5, 3)


async def test_append_returns_only_after_fsync_of_file_and_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursor passes when append returns, so the letter must be on the disk and findable there."""
    synced = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store = dead_letters(tmp_path)
    await store.append(event_batch(range(1)), reason="r")
    assert synced == [store.path, tmp_path]


async def test_a_full_file_says_so_with_the_remedy_and_takes_letters_again_after_a_purge(tmp_path: Path) -> None:
    """Never dropped, never beyond the limit, no restart needed."""
    store = dead_letters(tmp_path, max_bytes=2000)

    async def fill() -> None:
        for sequence in range(100):
            await store.append(event_batch(range(sequence, sequence + 1)), reason="r")

    with pytest.raises(Unavailable, match=r"full \(2000\).*purge.*dead_letter_max_bytes"):
        await fill()
    assert 1500 < store.path.stat().st_size <= 2000
    store.path.unlink()
    await store.append(event_batch(range(1)), reason="r")
    assert len(letters_in(store.path)) == 1


async def test_a_letter_exactly_at_the_limit_fits(tmp_path: Path) -> None:
    """The limit is a limit, not one less."""
    probe = dead_letters(tmp_path / "probe")
    await probe.append(event_batch(range(1)), reason="r")
    size = probe.path.stat().st_size
    store = dead_letters(tmp_path, max_bytes=2 * size)
    for _ in range(2):
        await store.append(event_batch(range(1)), reason="r")
    with pytest.raises(Unavailable):
        await store.append(event_batch(range(1)), reason="r")


async def test_a_letter_larger_than_the_limit_fits_an_empty_file(tmp_path: Path) -> None:
    """Else a purge would not free the output that waits with it."""
    store = dead_letters(tmp_path, max_bytes=1024)
    await store.append(event_batch(range(50)), reason="r")
    assert len(letters_in(store.path)) == 50


async def test_a_file_that_a_replay_waits_for_has_twice_the_room_and_no_more(tmp_path: Path) -> None:
    """After a replay of the spool the output may have gigabytes to go."""
    store = dead_letters(tmp_path, max_bytes=2000)
    with store.awaited():
        while store.size_bytes <= 3700:
            await store.append(event_batch(range(1)), reason="no")
        with pytest.raises(Unavailable, match="is full"):
            await store.append(event_batch(range(3)), reason="no")
    assert 3000 < store.size_bytes <= 4000
    with pytest.raises(Unavailable, match="is full"):
        await store.append(event_batch(range(1)), reason="no")


@pytest.mark.parametrize("torn", [b'{"ha', b"x" * 200_000], ids=["short", "longer than one look back"])
async def test_a_half_line_left_by_a_crash_is_cut(tmp_path: Path, torn: bytes) -> None:
    """Its event was never settled; the file stays one object a line."""
    store = dead_letters(tmp_path)
    await store.append(event_batch(range(1)), reason="r")
    with store.path.open("ab") as file:
        file.write(torn)
    await store.append(event_batch(range(1, 2)), reason="r")
    assert [letter["sequence"] for letter in letters_in(store.path)] == [0, 1]


async def test_a_file_that_is_only_a_half_line_is_emptied(tmp_path: Path) -> None:
    """The very first write may have been the torn one."""
    store = dead_letters(tmp_path)
    store.path.write_bytes(b'{"ha')
    await store.append(event_batch(range(1)), reason="r")
    assert len(letters_in(store.path)) == 1


async def test_a_full_disk_is_unavailable_and_heals(tmp_path: Path) -> None:
    """ENOSPC from the kernel itself: /dev/full."""
    store = dead_letters(tmp_path)
    store.path.symlink_to("/dev/full")
    with pytest.raises(Unavailable, match=r"No space left.*free or repair"):
        await store.append(event_batch(range(1)), reason="r")
    store.path.unlink()
    await store.append(event_batch(range(1)), reason="r")
    assert len(letters_in(store.path)) == 1


async def test_a_failed_fsync_leaves_no_line_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may not be on the disk is taken back and written anew, on a new descriptor."""
    store = dead_letters(tmp_path)
    await store.append(event_batch(range(1)), reason="r")
    with monkeypatch.context() as patch:

        def broken(_descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(os, "fsync", broken)
        with pytest.raises(Unavailable, match="Input/output"):
            await store.append(event_batch(range(1, 2)), reason="r")
    await store.append(event_batch(range(1, 2)), reason="r")
    assert [letter["sequence"] for letter in letters_in(store.path)] == [0, 1]


async def test_a_directory_sync_that_failed_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second write to a file whose name may not survive must not be taken for safe."""
    store = dead_letters(tmp_path)
    real_fsync, synced = os.fsync, []

    def only_files(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(target)
        if target == tmp_path and synced.count(tmp_path) == 1:
            raise OSError(5, "Input/output error")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with pytest.raises(Unavailable):
        await store.append(event_batch(range(1)), reason="r")
    await store.append(event_batch(range(1)), reason="r")
    assert synced.count(tmp_path) == 2


async def test_concurrent_letters_stand_in_whole_lines(tmp_path: Path) -> None:
    """A window of sends may be rejected at once."""
    store = dead_letters(tmp_path)
    await asyncio.gather(*(store.append(event_batch(range(n * 10, n * 10 + 10)), reason="r") for n in range(20)))
    assert sorted(letter["sequence"] for letter in letters_in(store.path)) == list(range(200))


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", ""])
def test_a_name_that_could_leave_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    """The name becomes a path."""
    with pytest.raises(ValueError, match="needs a name"):
        DeadLetters(tmp_path, output=name, max_bytes=1024, clock=lambda: 0.0)
