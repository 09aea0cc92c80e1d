"""Dead letters when people, reloads and several wishes at once get in each other's way: no letter vanishes unsent."""

import asyncio
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from letter_desk import Setting, refusing, running, until
from letter_site import letter, purged, sequences, write_letters

from ndagent.core.dead_letters import DeadLetters
from ndcollector.dead_letters import rewrite as rewriting
from ndcollector.dead_letters.desk import Busy
from ndcollector.dead_letters.letters import Wanted, parse
from ndcollector.dead_letters.progress import progress_path
from tests.events import event_batch


def store_of(tmp_path: Path, **more: Any) -> DeadLetters:
    settings = {"max_bytes": 2**20, "clock": lambda: 1_800_000_000.0} | more
    return DeadLetters(tmp_path / "dead_letters", output="archive", **settings)


def moved_away(path: Path) -> None:
    """As logrotate does, or a person who wants to look at leisure."""
    path.rename(path.with_suffix(".kept"))


def cut_to_nothing(path: Path) -> None:
    """As `: > archive.ndjson` does."""
    path.write_bytes(b"")


ACCIDENTS = pytest.mark.parametrize("accident", [moved_away, cut_to_nothing])


@ACCIDENTS
async def test_letters_of_another_file_do_not_leave_unsent(tmp_path: Path, accident: Callable[[Path], None]) -> None:
    """A replay that waits for its far side must not take new letters for those that it has sent."""
    path = write_letters(tmp_path, b"".join(map(letter, range(100))))
    async with running(Setting(tmp_path, batch_bytes=5_000)) as setting:
        far, answer = setting.far["archive"], asyncio.get_running_loop().create_future()
        far.judge = lambda found: answer if found[0] > 40 else None
        await setting.desk.replay("archive", wanted=Wanted(), to=None, uid=0)
        await until(lambda: far.sends > len(far.batches))
        accident(path)
        store = setting.deliveries["archive"].dead_letters
        for first in range(1000, 1200, 20):
            await store.append(event_batch(range(first, first + 20)), reason="new")
        answer.set_result(None)
        ended = await setting.ended()
        assert "moved or changed" in ended["ended"]
    assert sequences(path) == list(range(1000, 1200))
    assert not progress_path(path).exists()


@ACCIDENTS
def test_a_rewrite_does_not_put_the_old_file_over_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accident: Callable[[Path], None]
) -> None:
    """Between the copy and its place: what was appended to the new file is nowhere else."""
    path = write_letters(tmp_path, b"".join(map(letter, range(100))))
    store, settle, accidents = store_of(tmp_path), rewriting._settle, [accident]

    def settle_late(file: Any) -> None:
        settle(file)
        if accidents:
            accidents.pop()(path)
            with path.open("ab") as file:
                file.write(letter(1000) + letter(1001))

    monkeypatch.setattr(rewriting, "_settle", settle_late)
    with pytest.raises(rewriting.LettersChanged):
        purged(store, Wanted.read({"where": "host == fw-1"}), end=path.stat().st_size)
    assert sequences(path) == [1000, 1001]


def test_two_objects_of_one_file_do_not_overtake_each_other(tmp_path: Path) -> None:
    """A reload makes a new one, while a thread of the old one is still at work in the file."""
    before, after = store_of(tmp_path), store_of(tmp_path)
    appending = threading.Thread(target=lambda: asyncio.run(after.append(event_batch(range(1)), reason="r")))
    with before.still() as path:
        appending.start()
        appending.join(0.1)
        assert not path.exists()
    appending.join()
    assert sequences(path) == [0]


async def test_two_wishes_at_the_same_moment_are_not_both_granted(tmp_path: Path) -> None:
    """The second would write over the progress of the first, or remove letters under it."""
    path = write_letters(tmp_path, b"".join(map(letter, range(10))))
    status = path.stat()
    async with running(Setting(tmp_path)) as setting:
        desk = setting.desk
        setting.far["archive"].judge = lambda _found: asyncio.get_running_loop().create_future()
        outcomes = await asyncio.gather(
            desk.replay("archive", wanted=Wanted(), to=None, uid=0),
            desk.replay("archive", wanted=Wanted.read({"reason": "none"}), to=None, uid=0),
            desk.purge("archive", wanted=Wanted(), end=status.st_size, inode=status.st_ino, uid=0),
            return_exceptions=True,
        )
        assert [isinstance(one, Busy) for one in outcomes] == [False, True, True]
        assert sequences(path) == list(range(10))


async def test_a_wish_amid_a_reload_is_taken_up_after_it(tmp_path: Path) -> None:
    """Not before: its target may be closed already, and nobody would end it at the next reload."""
    write_letters(tmp_path, b"".join(map(letter, range(10))))
    async with running(Setting(tmp_path)) as setting:
        await setting.desk.suspend()
        await setting.desk.replay("archive", wanted=Wanted(), to=None, uid=0)
        await asyncio.sleep(0.05)
        assert setting.far["archive"].sends == 0
        setting.desk.begin()
        assert (await setting.ended())["replayed"] == 10


async def test_a_repeated_letter_that_is_refused_is_not_counted_as_taken(tmp_path: Path) -> None:
    """A crash may leave an event's letter twice: one stays, and the far side has taken none."""
    path = write_letters(tmp_path, letter(1) + letter(2) + letter(1))
    async with running(Setting(tmp_path)) as setting:
        setting.far["archive"].judge = refusing(lambda n: n == 1)
        ended = await setting.replay()
        assert (ended["replayed"], ended["refused"]) == (1, 2)
    assert sequences(path) == [1]


async def test_files_that_are_no_outputs_are_nobodys_letters(tmp_path: Path) -> None:
    """A copy beside them, made by a person, must not take the figures of all others away."""
    path = write_letters(tmp_path, letter(1))
    for name in ("archive (copy).ndjson", ".archive.ndjson"):
        path.with_name(name).write_bytes(letter(1))
    async with running(Setting(tmp_path)) as setting:
        assert {one["output"] for one in setting.desk.plain()} == {"archive", "other"}


async def test_words_that_json_cannot_hold_do_not_keep_a_letter_out(tmp_path: Path) -> None:
    """Half a surrogate pair, as Python makes of bytes that are no text: the output would be tried for ever."""
    store = store_of(tmp_path)
    await store.append(event_batch(range(2)), reason="r", reasons=["no\udcff", "b"], response="\ud800")
    (first, second) = [orjson.loads(line) for line in store.path.read_bytes().splitlines()]
    assert (first["reason"], second["reason"], first["response"]) == ("no?", "b", "?")
    await store.append_body(b"x", stream="s", spool_id="i", sequence=9, count=1, reason="no\udcff")
    assert sequences(store.path) == [0, 1, 9]


def test_an_event_as_deep_as_the_parser_allows_is_a_letter(tmp_path: Path) -> None:
    """A letter is one level deeper. What a far side refuses for its depth must not be damage, which nothing removes."""
    deep = b'{"a":' * 1024 + b"1" + b"}" * 1024
    line = letter(1).replace(orjson.dumps(orjson.loads(letter(1))["event"]), deep)
    assert deep in line
    found = parse(0, line)
    assert found is not None
    assert found.event_line == deep + b"\n"
    path = write_letters(tmp_path, line)
    assert purged(store_of(tmp_path), Wanted(), end=len(line)) == 1
    assert not path.exists()


async def test_the_count_of_letters_is_right_whoever_adds_and_removes_at_once(tmp_path: Path) -> None:
    """Threads add while the loop takes away: `nd_dead_letters_events` is what people are woken by."""
    path = write_letters(tmp_path, b"".join(map(letter, range(300))))
    async with running(Setting(tmp_path, batch_bytes=1024)) as setting:
        setting.far["archive"].judge = refusing(lambda n: n % 2 == 0)
        store = setting.deliveries["archive"].dead_letters
        replaying = asyncio.ensure_future(setting.replay())
        for first in range(1000, 1100):
            await store.append(event_batch(range(first, first + 1)), reason="new")
        await replaying
        assert setting.figures()["events"] == len(sequences(path)) == 150 + 100


async def test_a_kill_at_any_moment_of_a_replay_loses_no_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the disk before each fsync, rename and removal: a new process goes on from there."""
    write_letters(tmp_path / "0", b"".join(letter(n) for n in range(40)))
    moments: list[tuple[Path, set[int]]] = []
    setting = Setting(tmp_path / "0", batch_bytes=2048)
    far = setting.far["archive"]
    far.judge = refusing(lambda n: n % 7 == 0)

    def watched(name: str, owner: Any) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            if active:
                copy = tmp_path / str(len(moments) + 1)
                shutil.copytree(tmp_path / "0", copy)
                moments.append((copy, {*far.taken[: far.durable]}))
            return real(*args, **more)

        monkeypatch.setattr(owner, name, call)

    active = True
    watched("fsync", os)
    watched("replace", Path)
    watched("unlink", Path)
    async with running(setting):
        await setting.replay()
    active = False
    everything = set(range(40))
    assert len(moments) > 30
    for copy, taken in moments:
        again = Setting(copy, batch_bytes=2048)
        again.far["archive"].judge = refusing(lambda n: n % 7 == 0)
        async with running(again):
            path = copy / "dead_letters" / "archive.ndjson"
            await until(lambda: again.figures()["replay"] is None and not progress_path(path).exists())  # noqa: B023
        assert taken | {*again.far["archive"].taken} | {*sequences(path)} == everything, copy.name
